"""Requests that begin and do not end: let go after a while; who is slow but alive, or has said all, is not."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from websockets import connect

import app.serving
import app.uploads
from eventstore.connection import NatsAddress
from tests.api import Api, running
from tests.dialects.nanonets import RUN
from tests.dialects.shannon import PREFIX, TASKS
from tests.lifecycle.commands import produce, start_run
from tests.log.logs import SOON_S, until
from tests.walk.wire import Wire

SHORT_S, LONG_S = 0.3, 60.0
MULTIPART = "multipart/form-data; boundary=b"
FORM = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n' + b"x" * 200_000


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No limit is met by itself: a test makes those short that it is about."""
    for name in ("HEAD_S", "CUT_SILENCE_S", "CUT_BODY_S"):
        monkeypatch.setattr(app.serving, name, LONG_S)
    for name in ("SILENCE_S", "BODY_S"):
        monkeypatch.setattr(app.uploads, name, LONG_S)
    return monkeypatch


def post(path: str, length: int, *, token: str = "", kind: str = "application/json") -> bytes:
    """The head of a request whose body has this length."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Accept: */*", f"Content-Type: {kind}", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *([f"Authorization: Bearer {token}"] if token else []), "", ""]).encode()


@asynccontextmanager
async def speaking(api: Api, said: bytes) -> AsyncGenerator[Wire]:
    """A connection on which this was said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    writer.write(said)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


async def until_closed(wire: Wire) -> bytes:
    """What is said before the other side closes the connection, which it must."""
    try:
        return await asyncio.wait_for(wire.reader.read(), SOON_S)
    except ConnectionError:
        return b""


async def drip(wire: Wire, piece: bytes, every_s: float, times: int = 10_000) -> None:
    """Say a little, again and again, until nobody listens."""
    for _ in range(times):
        if wire.writer.is_closing() or wire.reader.at_eof() or wire.reader.exception():
            return
        wire.writer.write(piece)
        await asyncio.sleep(every_s)


async def cut(api: Api, said: bytes) -> bytes:
    """What is answered to this before the connection is closed."""
    async with speaking(api, said) as wire:
        return await until_closed(wire)


async def test_a_head_that_does_not_end_loses_its_connection(api: Api, patience: pytest.MonkeyPatch):
    patience.setattr(app.serving, "HEAD_S", SHORT_S)
    half = [b"", b"\r\n", b"POST /tas", b"POST /tasks HTTP/1.1\r\nHost: x\r\nX-Half: "]
    assert await asyncio.gather(*(cut(api, said) for said in half)) == [b""] * len(half)
    await until(lambda: api.connections() == 0)


async def test_a_second_head_that_does_not_end_loses_its_connection(api: Api, patience: pytest.MonkeyPatch):
    for more in (b"GET /health/li", b"\r\n"):
        patience.setattr(app.serving, "HEAD_S", LONG_S)
        async with speaking(api, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n") as wire:
            assert (await wire.head()).status == 200
            patience.setattr(app.serving, "HEAD_S", SHORT_S)
            wire.writer.write(more)
            await until_closed(wire)
    await until(lambda: api.connections() == 0)


async def test_a_head_that_drips_is_not_waited_for(api: Api, patience: pytest.MonkeyPatch):
    patience.setattr(app.serving, "HEAD_S", SHORT_S)
    async with speaking(api, b"GET /health/live HTTP/1.1\r\n") as wire:
        dripping = asyncio.ensure_future(drip(wire, b"X-n: a\r\n", 0.02))
        await until_closed(wire)
        await dripping


async def test_a_body_that_does_not_come_loses_its_connection(api: Api, patience: pytest.MonkeyPatch):
    patience.setattr(app.serving, "CUT_SILENCE_S", SHORT_S)
    heads = [post(path, 100, token=token) for path in ("/tasks", RUN, TASKS, "/mcp") for token in ("", api.token)]
    await asyncio.gather(*(cut(api, head + b'{"input": ') for head in heads))
    await until(lambda: api.connections() == 0)
    assert api.metric("http_requests_total", status="500") == 0


async def test_a_body_that_drips_is_not_waited_for_for_ever(api: Api, patience: pytest.MonkeyPatch):
    patience.setattr(app.serving, "CUT_BODY_S", SHORT_S)
    async with speaking(api, post("/tasks", 100_000, token=api.token)) as wire:
        dripping = asyncio.ensure_future(drip(wire, b" ", 0.02))
        await until_closed(wire)
        await dripping
    await until(lambda: api.connections() == 0)


@pytest.mark.parametrize("path", [RUN, TASKS])
@pytest.mark.parametrize("limit", ["SILENCE_S", "BODY_S"])
async def test_a_large_body_that_stops_is_refused_in_the_vendors_words_and_leaves_nothing_behind(
    api: Api, patience: pytest.MonkeyPatch, path: str, limit: str
):
    patience.setattr(app.uploads, limit, SHORT_S)
    before = len(await api.arrivals())
    form = path == RUN
    body, kind = (FORM, MULTIPART) if form else (b'{"query": "' + b"x" * 200_000, "application/json")
    async with speaking(api, post(path, 1_000_000, token=api.token, kind=kind) + body) as wire:
        dripping = asyncio.ensure_future(drip(wire, b"x", 0.02, times=0 if limit == "SILENCE_S" else 10_000))
        assert (await wire.head()).status == 400
        said = json.loads(await wire.reader.readexactly(int(wire.headers["content-length"])))
        await until_closed(wire)
        await dripping
    assert wire.headers["connection"] == "close"
    assert said["error"].startswith("a request pauses" if form else "Invalid request body: a request pauses")
    await until(lambda: api.connections() == 0)
    assert len(await api.arrivals()) == before


async def test_a_body_that_comes_slowly_is_taken(api: Api, patience: pytest.MonkeyPatch):
    silence_s = 1.0
    patience.setattr(app.serving, "CUT_SILENCE_S", silence_s)
    patience.setattr(app.uploads, "SILENCE_S", silence_s)

    async def taken(path: str, body: bytes) -> int:
        async with speaking(api, post(path, len(body), token=api.token)) as wire:
            for n in range(len(body)):
                wire.writer.write(body[n : n + 1])
                await asyncio.sleep(silence_s * 1.2 / len(body))
            return (await wire.head()).status

    assert await asyncio.gather(taken("/tasks", b'{"input": "x"}'), taken(RUN, b'{"query": "x"}')) == [201, 200]


async def test_who_has_said_all_waits_for_as_long_as_the_answer_takes(api: Api, patience: pytest.MonkeyPatch):
    for name in ("HEAD_S", "CUT_SILENCE_S", "CUT_BODY_S"):
        patience.setattr(app.serving, name, 2 * SHORT_S)
    begun = monotonic()
    task_id = await api.begin(start_run())
    bearer = f"Authorization: Bearer {api.token}"
    ask = f"GET /tasks/{task_id} HTTP/1.1\r\nHost: x\r\nPrefer: wait=1\r\n{bearer}\r\n\r\n"
    socket_url = f"{api.url.replace('http', 'ws')}{PREFIX}/api/v1/stream/ws?workflow_id={task_id}"
    events = await Wire.ask(api.url, f"/tasks/{task_id}/events", {"Accept": "text/event-stream", **api.bearer})
    await (await events.head()).frames(2)
    async with speaking(api, ask.encode()) as poll, connect(socket_url, additional_headers=api.bearer) as client:
        assert (await poll.head()).status == 200
        assert monotonic() - begun > 3 * SHORT_S
        while monotonic() - begun < 5 * SHORT_S:
            await api.client.get(f"/tasks/{task_id}", headers={"Prefer": "wait=1"})
        await api.tell(task_id, produce("still here"))
        assert b"still here" in b"".join(await events.frames(1))
        async with asyncio.timeout(SOON_S):
            while "still here" not in str(await client.recv()):
                pass
    await events.close()
