"""Creations over HTTP by many clients, beside a handler of Litestar's that only decodes the same body."""

import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from eventstore.connection import NatsAddress
from tests.bench.audit import serving
from tests.bench.figures import Figure
from tests.bench.loads import Load, listening, loaded
from tests.walk.serving import free_port

ROUNDS = 5
SECONDS = 2
CLIENTS = 64
OURS, BARE = "POST /tasks", "a handler that decodes"
SCRIPT = """
wrk.method = "POST"
wrk.body = '{"input": {"text": "What do the tides do?"}, "title": "A brief", "metadata": {"a": 1}}'
wrk.headers["Content-Type"] = "application/json"
"""


async def creations(nats: NatsAddress) -> list[Figure]:
    """Both in turn, again and again."""
    if shutil.which("wrk") is None:
        return [Figure(name=OURS, values=[], unit="", missing="wrk is not installed: apt-get install -y wrk")]
    loads: dict[str, list[Load]] = {OURS: [], BARE: []}
    async with AsyncExitStack() as stack:
        url, token = await stack.enter_async_context(serving(nats, scopes=("tasks:write",)))
        targets = {OURS: url, BARE: await stack.enter_async_context(_decoding())}
        script = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "post.lua"
        script.write_text(SCRIPT)
        for _ in range(ROUNDS):
            for name, where in targets.items():
                load = await loaded(f"{where}/tasks", f"Bearer {token}", CLIENTS, SECONDS, script)
                loads[name].append(load)
    shares = [one.rate / other.rate for one, other in zip(loads[OURS], loads[BARE], strict=True)]
    figures: list[Figure] = []
    for name, found in loads.items():
        figures += [
            Figure(name=f"{name}, {CLIENTS} clients", values=[one.rate for one in found], unit="answers/s"),
            Figure(name=f"{name}, p99", values=[one.p99_ms for one in found], unit="ms"),
        ]
    return [*figures, Figure(name=f"{OURS}, share", values=shares, unit="", share_of=BARE, aim=0.6)]


@asynccontextmanager
async def _decoding() -> AsyncGenerator[str]:
    port = free_port()
    async with listening(port, sys.executable, "-m", "tests.bench.decoding", str(port)):
        yield f"http://127.0.0.1:{port}"
