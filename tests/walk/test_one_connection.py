"""Several requests on one connection, and clients that do not read: no answer gets into another's, and nobody stays."""

import asyncio
import re
import shutil
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

import app.serving
import app.telling
from app.api import build
from app.at_once import SLICE
from app.serving import Protocol
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from tests.api import DEV, Api, answering, running
from tests.lifecycle.commands import complete, produce, start_run
from tests.log.logs import until
from tests.walk.test_at_once import asking, certified, closing, connected, one
from tests.walk.test_slow_requests import post

EVENTS = b"Accept: text/event-stream"
SOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + b"a" * 22 + b"==",
)
SMALL = 4_096
TINY = b"GET /x HTTP/1.1\r\nHost:x\r\n\r\n"
SHORT_S = 0.2


class Ours:
    """An API whose connections can be looked at."""

    def __init__(self, api: Api, url: str, connections: set[object]) -> None:
        self.api, self.url = api, url
        self._connections = connections

    @property
    def spoken(self) -> Protocol:
        """The one connection."""
        (one,) = self._connections
        assert isinstance(one, Protocol)
        return one

    @property
    def alone(self) -> bool:
        """Nobody is there."""
        return not self._connections

    def stuff(self) -> None:
        """The kernel takes in little of what the client does not read."""
        self.spoken.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)


@pytest.fixture
async def ours(nats_address: NatsAddress) -> AsyncGenerator[Ours]:
    async with running(nats_address, http=HttpSettings(reads="bounded", ping_s=0.1)) as api:
        await api.rooms.tokens.all()  # the tail has them
        async with answering(build(api.rooms), api.rooms) as (url, server):
            yield Ours(api, url, server.server_state.connections)  # pyright: ignore[reportArgumentType]  # a set of uvicorn's


def events(task_id: TaskId) -> bytes:
    return asking(f"/tasks/{task_id}/events", EVENTS)


async def opened(reader: asyncio.StreamReader) -> None:
    """The stream's first words were said."""
    await reader.readuntil(b"event: task.created\n")


def silent(writer: asyncio.StreamWriter) -> asyncio.Transport:
    """Whoever reads no more."""
    assert isinstance(writer.transport, asyncio.Transport)
    writer.transport.pause_reading()
    return writer.transport


async def another(ours: Ours, writer: asyncio.StreamWriter, request: bytes) -> None:
    """Ask this; it was answered, though nobody may have read it."""
    answered = ours.api.metric("http_requests_total", status="200")
    writer.write(request)
    await until(lambda: ours.api.metric("http_requests_total", status="200") > answered)


async def test_what_waits_behind_a_poll_in_one_piece_is_not_cut_for_being_idle(ours: Ours):
    task_id = await ours.api.begin()
    for behind in (events(task_id), post("/tasks", 100, token=ours.api.token)):
        async with connected(ours.url) as (reader, writer):
            writer.write(asking(f"/tasks/{task_id}") + behind)
            await one(reader)
            await until(lambda: ours.spoken.answering)
            assert ours.spoken.timeout_keep_alive_task is None
        await until(lambda: ours.alone)


@pytest.mark.parametrize("together", [True, False])
async def test_a_socket_that_is_wished_for_behind_a_stream_gets_nothing_into_it(ours: Ours, together: bool):
    task_id = await ours.api.begin()
    wish = asking(f"/shannon/api/v1/stream/ws?workflow_id={task_id}", *SOCKET)
    async with connected(ours.url) as (reader, writer):
        writer.write(events(task_id) + wish * together)
        if not together:
            await opened(reader)
            writer.write(wish)
        said = await closing(reader)
    assert b"101" not in said.partition(b"\r\n\r\n")[2 * together]
    assert not said.endswith(b"0\r\n\r\n")
    await until(lambda: ours.api.metric("open_streams") == 0 and ours.alone)


@pytest.mark.parametrize("junk", [b"no request\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"])
async def test_what_is_no_request_behind_a_stream_is_not_told_so_in_it(ours: Ours, junk: bytes):
    task_id = await ours.api.begin()
    async with connected(ours.url) as (reader, writer):
        writer.write(events(task_id))
        await opened(reader)
        writer.write(junk)
        said = await closing(reader)
    assert b"HTTP/1.1" not in said
    assert not said.endswith(b"0\r\n\r\n")
    await until(lambda: ours.api.metric("open_streams") == 0)


async def test_what_has_too_large_a_head_is_refused_and_not_done_as_well(ours: Ours):
    made = await ours.api.rooms.tokens.add("tt_kept", DEV, ("tasks:read",))
    wish = asking(f"/admin/tokens/{made.id}", b"X-Large: " + b"a" * 65_000, method="DELETE")
    async with connected(ours.url) as (reader, writer):
        writer.write(wish[:-2])
        await until(lambda: not ours.alone and len(ours.spoken.headers or ()) >= 2)
        writer.write(b"X-More: " + b"a" * 1_000 + b"\r\n\r\n")
        said = await closing(reader)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"431"]
    await until(lambda: ours.alone)
    assert made in await ours.api.rooms.tokens.all()


async def test_a_ping_does_not_overtake_the_head_of_its_stream(ours: Ours):
    task_id = await ours.api.begin(start_run(), produce("x" * 55_000))
    async with connected(ours.url, room_bytes=SMALL) as (reader, writer):
        writer.write(asking("/health/live"))
        await one(reader)
        ours.stuff()
        first, transport, asked = ours.spoken, silent(writer), 0
        while not first.flow.write_paused:
            asked += 1
            await another(ours, writer, asking(f"/tasks/{task_id}"))
        writer.write(events(task_id))
        await until(lambda: ours.api.metric("open_streams") == 1)
        async with connected(ours.url) as (other, asker):
            asker.write(events(task_id))
            for _ in range(3):  # so long that the first would have been pinged, too
                await other.readuntil(b": ping\n\n")
        transport.resume_reading()
        for _ in range(asked):
            assert (await one(reader))[0].startswith(b"HTTP/1.1 200 OK")
        head, _ = await one(reader)
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert b"text/event-stream" in head
        await opened(reader)


async def test_requests_that_wait_for_their_turn_are_few_whatever_is_sent(ours: Ours):
    async with connected(ours.url, room_bytes=SMALL) as (reader, writer):
        writer.write(TINY)
        await one(reader)
        ours.stuff()
        transport = silent(writer)
        writer.write(TINY * 100_000)
        await until(lambda: ours.spoken.flow.write_paused and ours.spoken.crowded)
        for _ in range(100):
            await asyncio.sleep(0)  # so that it could read on
            assert len(ours.spoken.pipeline) <= SLICE // len(TINY) + 1
        assert not ours.spoken.transport.is_reading()
        transport.abort()
    await until(lambda: ours.alone)


async def test_all_that_waits_is_answered_in_its_order_bodies_and_all(ours: Ours):
    text, body = b"", b'{"input": "' + b"x" * 3_000 + b'"}'
    for n in range(60):
        named = b"X-Request-ID: %d\r\n\r\n" % n
        text += asking("/x", b"Accept: */*")[:-2] + named
        text += post("/tasks", len(body), token=ours.api.token)[:-2] + named + body
    async with connected(ours.url) as (reader, writer):
        for cut in range(0, len(text), 50_000):
            writer.write(text[cut : cut + 50_000])
            await asyncio.sleep(0)
        for n in range(60):
            for status in (b"404", b"201"):
                head, _ = await one(reader)
                assert head.startswith(b"HTTP/1.1 " + status)
                assert b"x-request-id: %d\r\n" % n in head
        writer.write(TINY)
        assert (await one(reader))[0].startswith(b"HTTP/1.1 404")


async def test_who_asks_and_never_reads_is_dropped(ours: Ours, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app.serving, "CUT_STALLED_S", SHORT_S)
    task_id = await ours.api.begin(start_run(), produce("x" * 20_000))
    for asked, then in (
        (200, b""),
        (3, TINY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
        (3, b"no request\r\n\r\n"),
    ):
        async with connected(ours.url, room_bytes=SMALL) as (reader, writer):
            writer.write(TINY)
            await one(reader)
            ours.stuff()
            silent(writer)
            writer.write(asking(f"/tasks/{task_id}") * asked + then)
            await until(lambda: ours.alone)


async def test_a_stream_at_its_end_that_nobody_reads_is_let_go(ours: Ours, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app.telling, "STALLED_S", SHORT_S)
    task_id = await ours.api.begin(start_run())
    async with connected(ours.url, room_bytes=SMALL) as (reader, writer):
        writer.write(events(task_id))
        await opened(reader)
        ours.stuff()
        silent(writer)
        said, text = 0, "x" * 50_000
        while not ours.spoken.flow.write_paused:
            await ours.api.tell(task_id, produce(text, offset=said * len(text)))
            said += 1
        await ours.api.tell(task_id, complete())
        await until(lambda: ours.api.metric("open_streams") == 0)
        assert ours.api.metric("streams_cut_total", why="stalled") == 1
        await until(lambda: ours.alone, 10.0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_over_tls_no_more_is_held_for_who_does_not_read(nats_address: NatsAddress, tmp_path: Path):
    file = await asyncio.to_thread(certified, tmp_path)
    trusting = ssl.create_default_context(cafile=str(file))
    async with (
        running(nats_address, http=HttpSettings(max_stream_bytes=100_000)) as api,
        answering(build(api.rooms), api.rooms, certificate=file) as (url, server),
    ):
        ours = Ours(api, url, server.server_state.connections)  # pyright: ignore[reportArgumentType]  # a set of uvicorn's
        task_id = await api.begin(start_run())
        async with connected(url, trusting, room_bytes=SMALL) as (reader, writer):
            writer.write(events(task_id))
            await opened(reader)
            ours.stuff()
            held, spoken = 0, ours.spoken
            silent(writer)
            said, text = 0, "x" * 20_000
            while api.metric("streams_cut_total", why="slow") == 0:
                await api.tell(task_id, produce(text, offset=said * len(text)))
                said, held = said + 1, max(held, spoken.transport.get_write_buffer_size())
            assert held <= 100_000 + len(text)
