"""What a deployment writes while it runs: a line of JSON for each event, and never a secret."""

import ast
import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from msgspec import Struct

import app
from tests.log.logs import SOON_S
from tests.walk.serving import Serving, family, serving
from tests.walk.wire import Wire

TOKEN = "tt_never_to_be_seen_8f3a"
WRONG = "tt_wrong_and_not_to_be_seen_either_77c1"
ROOT = Path(app.__file__).parent.parent
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
SECRETS = frozenset({"token", "secret", "password", "query", "headers", "url", "authorization"})
ACCEPTED = {"Accept": "text/event-stream"}


class Line(Struct):
    """What every line has."""

    event: str
    level: str
    timestamp: str
    process: str = ""
    exception: str = ""


class Passwords(Struct):
    """What `nats-server.json` keeps secret."""

    password: str
    archive_password: str


def lines_of(written: str) -> list[Line]:
    """Raises AssertionError for a line that is none of ours."""
    found: list[Line] = []
    for line in written.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Line))
        except msgspec.MsgspecError as error:
            raise AssertionError(f"not an event: {line!r}") from error
    return found


async def test_a_whole_run_writes_events_and_no_secret(tmp_path: Path):
    data_dir = tmp_path / "data"
    async with serving(data_dir, "--log-level", "debug", environment={"TASKTRAIL_TOKEN": TOKEN}) as service:
        assert service.token == TOKEN
        passwords = msgspec.json.decode((data_dir / "nats-server.json").read_bytes(), type=Passwords)
        cut = await live(service)
        assert await service.stop() == 0
        await cut.close()
        assert service.process.stdout is not None
        printed_later = (await service.process.stdout.read()).decode()
        written = service.logs
    logs = [path for path in data_dir.glob("nats-server.*") if path.suffix not in (".conf", ".json")]
    assert {path.name for path in logs} >= {"nats-server.log", "nats-server.err"}
    everything = written + printed_later + "".join(path.read_text() for path in logs)
    for secret in (TOKEN, WRONG, passwords.password, passwords.archive_password):
        assert secret not in everything
    assert service.printed.count(TOKEN) == 2, "on purpose: once to be seen, once in the curl to be pasted"
    lines = lines_of(written)
    assert {re.sub(r"-.*", "", line.process) for line in lines} >= {"supervisor", "api", "worker", "projector"}
    events = {line.event for line in lines}
    assert events >= {"http.request", "run.began", "run.ended", "child.exited", "dispatcher.worker_lost", "api.ready"}
    assert not [line for line in lines if line.level in ("error", "critical")]
    assert "?" not in "".join(line for line in written.splitlines() if '"http.request"' in line)


async def live(service: Serving) -> Wire:
    """All that may go well and wrong within a few seconds; a stream that is still open."""
    async with service.client() as client:
        task_id = await submit(client, {"say": "a few words"}, {"complete": "done"})
        with_token = {"token": TOKEN, "after": "0"}
        async with httpx.AsyncClient(base_url=service.url, timeout=SOON_S) as stranger:
            told = await stranger.get(f"/tasks/{task_id}/events", params=with_token, headers=ACCEPTED)
            assert told.status_code == 200
            assert "event: task.completed" in told.text
            wrong = {"Authorization": f"Bearer {WRONG}"}
            assert (await stranger.get(f"/tasks/{task_id}", headers=wrong)).status_code == 401
            assert (await stranger.get(f"/tasks/{task_id}", params=with_token)).status_code == 401
            refused = await stranger.get(f"/tasks/{task_id}/events", params={"token": WRONG}, headers=ACCEPTED)
            assert refused.status_code == 401
        for body in (b"{", b'{"input": 7, "agent": 8}', b'{"agent": "nobody"}', b'{"input": "' + b"x" * 2**21 + b'"}'):
            answer = await client.post("/tasks", content=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500
        await speak_nonsense(service)
        open_stream = await submit(client, {"ask": "which?"})
        wire = await Wire.ask(service.url, f"/tasks/{open_stream}/events?token={TOKEN}", ACCEPTED)
        assert (await wire.head()).status == 200
        wire.reset()
        await survive_deaths(service, client)
        cut = await Wire.ask(service.url, f"/tasks/{open_stream}/events?token={TOKEN}", ACCEPTED)
        assert (await cut.head()).status == 200
        return cut


async def survive_deaths(service: Serving, client: httpx.AsyncClient) -> None:
    task_id = await submit(client, {"sleep": 0.5}, {"complete": "done"})
    await until_status(client, task_id, "running")
    os.kill(family(service.process.pid)["worker"], signal.SIGKILL)
    await until_status(client, task_id, "completed")
    os.kill(family(service.process.pid)["nats-server"], signal.SIGKILL)
    key = {"Idempotency-Key": "after the death"}
    async with asyncio.timeout(SOON_S):
        while (await client.post("/tasks", json={"input": "hello"}, headers=key)).status_code >= 500:  # noqa: ASYNC110  # as a client would
            await asyncio.sleep(0.05)


async def submit(client: httpx.AsyncClient, *steps: dict[str, object]) -> str:
    answer = await client.post("/tasks", json={"agent": "simulator", "input": {"steps": list(steps)}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["task_id"])


async def until_status(client: httpx.AsyncClient, task_id: str, status: str) -> None:
    async with asyncio.timeout(SOON_S):
        while (task := (await client.get(f"/tasks/{task_id}")).json())["status"] != status:
            assert not task["terminal"], task
            await asyncio.sleep(0.02)


async def speak_nonsense(service: Serving) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(f"NONSENSE {TOKEN}\r\n\r\n".encode())
    async with asyncio.timeout(SOON_S):
        assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


STRANGE = """
import asyncio, logging, sys
import structlog
from app.logs import configure_logs

configure_logs("debug", process="test")
log = structlog.stdlib.get_logger()
try:
    raise ValueError("two\\nlines")
except ValueError as error:
    log.error("test.caught", exc_info=error)
    log.exception("test.caught_too")
for name in ("nats.aio.client", "uvicorn.error"):
    logging.getLogger(name).info("not of interest")
    logging.getLogger(name).warning("of %s", "interest")

async def forget():
    failing = asyncio.ensure_future(fail())
    await asyncio.wait({failing})

async def fail():
    raise ValueError("never\\nretrieved")

asyncio.run(forget())
"""


def test_an_exception_is_one_line_whoever_tells_it():
    command = [sys.executable, "-c", STRANGE]
    written = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=SOON_S, check=True)
    assert written.stdout == ""
    lines = lines_of(written.stderr)
    assert [(line.event, line.level) for line in lines] == [
        ("test.caught", "error"),
        ("test.caught_too", "error"),
        ("of interest", "warning"),
        ("of interest", "warning"),
        (lines[-1].event, "error"),
    ]
    assert lines[-1].event.startswith("Task exception was never retrieved")
    assert all("Traceback" in line.exception for line in (lines[0], lines[1], lines[-1]))


def log_calls(path: Path) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
    ]


@pytest.mark.parametrize("package", ["app", "projections", "eventstore"])
def test_every_event_has_a_dotted_constant_name_and_facts_as_fields(package: str):
    for path in (ROOT / package).rglob("*.py"):
        for call in log_calls(path):
            where = f"{path.name}:{call.lineno}"
            name = call.args[0] if len(call.args) == 1 else None
            assert isinstance(name, ast.Constant), where
            assert re.fullmatch(r"[a-z_]+\.[a-z_]+", str(name.value)), where
            fields = {keyword.arg for keyword in call.keywords}
            assert None not in fields, where
            assert not fields & SECRETS, where
