"""Our OpenAPI against the API itself: schemathesis, all its checks, data that is right and data that is wrong."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.checkpoints import Checkpoints
from app.commands import CancelTask
from app.settings import HttpSettings
from eventstore.checkpointing import answering
from eventstore.connection import NatsAddress
from tests.api import Api, running
from tests.dialects.lists import carried, until_listed
from tests.lifecycle.commands import request_review, start_run

METHODS = {"get", "post", "put", "patch", "delete"}
OPERATIONS = {
    "DELETE /admin/tokens/{token_id}",
    "GET /admin/tokens",
    "GET /admin/tools",
    "GET /agents",
    "GET /events",
    "GET /events/blobs/{record_id}",
    "GET /health/live",
    "GET /health/ready",
    "GET /metrics",
    "GET /tasks",
    "GET /tasks/{task_id}",
    "GET /tasks/{task_id}/blobs/{sha256}",
    "GET /tasks/{task_id}/events",
    "POST /admin/tokens",
    "POST /checkpoints",
    "POST /tasks",
    "POST /tasks/{task_id}/cancel",
    "POST /tasks/{task_id}/messages",
    "POST /tasks/{task_id}/pause",
    "POST /tasks/{task_id}/resume",
    "POST /tasks/{task_id}/review",
    "PUT /admin/tools",
    "GET /v1/public/tasks/{task_id}",
    "POST /v1/public/ask",
    "POST /v1/public/execute",
}


CONFIG = """
[dictionaries]
tasks = {{ values = [{ids}] }}
sequences = {{ values = ["1", "2", "3"] }}

[parameters]
"path.task_id" = {{ dictionary = "tasks", probability = 0.9 }}
"query.at" = {{ dictionary = "sequences", probability = 1.0 }}
"""
"""So that most requests are about a task that there is, and none about the future, which is a bad request."""


HASTY = HttpSettings(niyra_execute_window_s=0.1, niyra_ask_window_s=0.1)
"""Nobody works on what is asked for."""


@pytest.fixture
async def listing(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Api]:
    """An API that has views, and so lists; and somebody who signs."""
    views_url = f"sqlite:///{tmp_path / 'views.sqlite'}"
    async with carried(nats_address, views_url), running(nats_address, http=HASTY, views_url=views_url) as api:
        await until_listed(api, 0)
        checkpoints = Checkpoints(api.rooms.tasks.log, Ed25519PrivateKey.generate())
        async with answering(api.rooms.connection, checkpoints.write):
            yield api
        await checkpoints.close()


async def described(api: Api) -> set[str]:
    """The operations that our OpenAPI names."""
    document = (await api.client.get("/docs/openapi.json")).content
    paths = msgspec.convert(msgspec.json.decode(document)["paths"], dict[str, dict[str, object]])
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods if method in METHODS}


async def test_every_operation_is_described(api: Api):
    assert await described(api) == OPERATIONS


async def test_schemathesis_finds_nothing(listing: Api, tmp_path: Path):
    api = listing
    tasks = [await api.begin(), await api.begin(CancelTask(by="ann"))]
    tasks += [await api.begin(start_run(), request_review()) for _ in range(3)]
    ids = ", ".join(f'"{task_id}"' for task_id in tasks)
    (tmp_path / "schemathesis.toml").write_text(CONFIG.format(ids=ids))
    document = f"{api.url}/docs/openapi.json"
    # What the whole of it takes is bounded by the examples, and the same every time by the seed.
    options = ["--checks=all", "--mode=all", "--max-examples=10", "--seed=1", "--continue-on-failure", "--no-color"]
    report = tmp_path / "report.json"
    checking = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", document, "--header", f"Authorization: Bearer {api.token}", *options),
        *("--report-json-path", str(report)),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await checking.communicate()
    assert checking.returncode == 0, said.decode()
    assert f"Tested: {len(OPERATIONS)}" in said.decode()
