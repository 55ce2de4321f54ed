"""Polls of one task by many clients: our service, beside bare uvicorn and FastAPI that send the same bytes."""

import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import msgspec

from eventstore.server import EmbeddedServer
from tests.bench.answering import Answer
from tests.bench.audit import serving
from tests.bench.figures import Figure
from tests.bench.loads import Load, listening, loaded
from tests.projections.databases import Cluster
from tests.walk.serving import free_port

ROUNDS = 5
SECONDS = 2
CLIENTS = 64
OURS, STRICT, BARE, FASTAPI = "ours", "ours, strict reads", "bare uvicorn", "a FastAPI handler"


async def polls(directory: Path, _records: int, _: Cluster | None) -> list[Figure]:
    """All of them in turn, again and again; there is one task, which is attached."""
    if shutil.which("wrk") is None:
        return [Figure(name="polls", values=[], unit="", missing="wrk is not installed: apt-get install -y wrk")]
    server = await EmbeddedServer.start(directory / "log")
    try:
        async with AsyncExitStack() as stack:
            scopes = ("tasks:read", "tasks:write")
            url, token = await stack.enter_async_context(serving(server.address, "--reads", "bounded", scopes=scopes))
            credential = f"Bearer {token}"
            path, answer = await _polled(url, credential)
            strict, its = await stack.enter_async_context(serving(server.address, "--reads", "strict", scopes=scopes))
            targets = {OURS: (url, credential), STRICT: (strict, f"Bearer {its}")}
            targets[BARE] = await stack.enter_async_context(_answering("bare", answer)), credential
            if find_spec("fastapi") is not None:
                targets[FASTAPI] = await stack.enter_async_context(_answering("fastapi", answer)), credential
            loads: dict[str, list[Load]] = {name: [] for name in targets}
            for _round in range(ROUNDS):
                for name, (where, whose) in targets.items():
                    loads[name].append(await loaded(where + path, whose, CLIENTS, SECONDS))
    finally:
        await server.stop()
    return _figures(loads)


def _figures(loads: dict[str, list[Load]]) -> list[Figure]:
    rates = {name: [load.rate for load in found] for name, found in loads.items()}
    slowest = {name: [load.p99_ms for load in found] for name, found in loads.items()}

    def ratios(of: dict[str, list[float]], name: str, to: str) -> list[float]:
        return [one / other for one, other in zip(of[name], of[to], strict=True)]

    figures = [Figure(name=f"polls, {name}", values=found, unit="polls/s") for name, found in rates.items()]
    figures += [Figure(name=f"polls, {name}, p99", values=found, unit="ms") for name, found in slowest.items()]
    figures += [
        Figure(name="polls, share", values=ratios(rates, OURS, BARE), unit="", share_of=BARE, aim=0.7),
        Figure(name="polls, strict, share", values=ratios(rates, STRICT, BARE), unit="", share_of=BARE),
        Figure(name="polls, p99", values=ratios(slowest, OURS, BARE), unit="x", share_of=BARE, aim=2, than="under"),
    ]
    times, missing = ([], "FastAPI is not installed") if FASTAPI not in rates else (ratios(rates, OURS, FASTAPI), "")
    figures.append(Figure(name="polls", values=times, unit="x", share_of=FASTAPI, aim=3, missing=missing))
    return figures


async def _polled(url: str, credential: str) -> tuple[str, Answer]:
    """A new task's path, and what a poll of it answers."""
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": credential}) as client:
        made = await client.post("/tasks", json={"input": "what is polled"})
        made.raise_for_status()
        polled = await client.get(made.headers["location"])
        polled.raise_for_status()
    headers = [(name, value) for name, value in polled.headers.items() if name != "date"]
    return made.headers["location"], Answer(credential, headers, polled.text)


@asynccontextmanager
async def _answering(what: str, answer: Answer) -> AsyncGenerator[str]:
    """Such a process; its URL."""
    port = free_port()
    words = (sys.executable, "-m", "tests.bench.answering", what, str(port))
    async with listening(port, *words, given=msgspec.json.encode(answer)):
        yield f"http://127.0.0.1:{port}"
