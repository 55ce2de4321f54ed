"""Polls over a real socket: what is answered at once is, byte for byte and in its order, what uvicorn's way answers."""

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar.types import ASGIApp, Receive, Scope, Send
from structlog.testing import capture_logs

import app.serving
from app.api import POLLS, build
from app.at_once import IN_A_ROW
from app.front import Answer, Front
from app.http_server import Server
from app.serving import Protocol
from app.settings import HttpSettings, LimitSettings
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.tokens import Plan
from tests.api import DEV, Api, answering, running
from tests.lifecycle.commands import start_run
from tests.log.logs import SOON_S, until

MANY = 2_000
BY_THE_WAY = re.compile(
    rb"(?m)^date: [^\r]*|(?<=^x-request-id: )req_[0-9a-f-]{36}|(?<=^x-trace-id: )[0-9a-f]{32}"
    rb"|(?<=^x-span-id: )[0-9a-f]{14}"
)
"""What no two answers have in common."""
POLLED = ("/tasks/{id}", "/tasks/{uuid}", "/v1/public/tasks/{id}", "/shannon/api/v1/tasks/{id}", "/api/v1/tasks/{id}")
ELSE = ("/tasks/{id}?", "/tasks/{id}?x=1", "/tasks/{id}#x", "/tasks/task%5F{uuid}", "//tasks/{id}", "/tasks/{ID}")
ABSENT = ("/tasks/task_none", "/tasks/{uuid}/events/none", "/health/live", "http://there.example/tasks/{id}", "*")
PLAIN: tuple[bytes, ...] = (b"", b"Accept: */*", b'If-None-Match: "1"', b'If-None-Match: "2"', b"X-Request-ID: mine")
ODD: tuple[bytes, ...] = (
    *(b"If-None-Match: *", b"Prefer: wait=0", b"Cache-Control: no-cache", b"Origin: https://page.example"),
    *(b"Content-Length: 0", b"Expect: 100-continue", b"X-API-Key: tt_unknown", b"Host: two.example", b"X-A: \xff"),
    *(b"Connection: keep-alive", b"Connection: x", b"Upgrade: h2c", b"traceparent: 00-" + b"a" * 32 + b"-b-01"),
)
LAST: tuple[bytes, ...] = (b"Connection: close", b"connection: Close, x")


def behind_of(api: Api) -> ASGIApp:
    """What is behind the front."""
    return build(api.rooms)._app  # pyright: ignore[reportPrivateUsage]  # the front in front of it is the test's


class Seen(Front):
    """A front that knows what it answered at once, and what came to it by uvicorn's way; or answers nothing so."""

    def __init__(self, api: Api, behind: ASGIApp | None = None, *, at_once: bool = True) -> None:
        super().__init__(behind or behind_of(api), api.rooms, POLLS)
        self.may = at_once
        self.answered = 0
        self.passed_on = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.passed_on += scope["type"] == "http"
        await super().__call__(scope, receive, send)

    def at_once(self, root_path: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Answer | None:
        answer = super().at_once(root_path, path, headers) if self.may else None
        self.answered += answer is not None
        return answer


class Broken(Seen):
    """A front that fails where it should answer at once."""

    def at_once(self, root_path: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Answer | None:
        raise RuntimeError("a fault of ours")


class Both:
    """Two servers with the same rooms: one answers at once what it can, the other nothing."""

    def __init__(self, api: Api, seen: Seen, server: Server, ours: str, theirs: str) -> None:
        self.api, self.seen, self.server = api, seen, server
        self.ours, self.theirs = ours, theirs

    @property
    def spoken(self) -> Protocol:
        """The one connection of the server that answers at once."""
        (one,) = self.server.server_state.connections
        assert isinstance(one, Protocol)
        return one

    async def same(self, pieces: Sequence[bytes]) -> bytes:
        """What both say to these, until they close the connection."""
        for again in (True, False):  # a wait may become another just between the two
            ours, theirs = [BY_THE_WAY.sub(b"", await exchanged(url, pieces)) for url in (self.ours, self.theirs)]
            if ours == theirs:
                return ours
            assert again, (pieces, ours, theirs)
        raise AssertionError


@asynccontextmanager
async def both(api: Api, *, root_path: str = "") -> AsyncGenerator[Both]:
    async with AsyncExitStack() as stack:
        behind = behind_of(api)
        seen, other = Seen(api, behind), Seen(api, behind, at_once=False)
        ours, server = await stack.enter_async_context(answering(seen, api.rooms, root_path=root_path))
        theirs, _ = await stack.enter_async_context(answering(other, api.rooms, root_path=root_path))
        yield Both(api, seen, server, ours, theirs)


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address, http=HttpSettings(reads="bounded")) as api:
        await api.rooms.tokens.add("sk_nanonets", DEV, ("tasks:read",), dialect="nanonets", plan=Plan(unlimited=True))
        await api.rooms.tokens.all()  # the tail has them
        yield api


@pytest.fixture
async def sides(api: Api) -> AsyncGenerator[Both]:
    async with both(api) as sides:
        yield sides


def asking(path: str, *headers: bytes, method: str = "GET", version: str = "1.1", token: str = "tt_dev") -> bytes:
    first = f"{method} {path} HTTP/{version}".encode()
    own = (b"Host: here.example:80", b"Authorization: Bearer " + token.encode())
    return b"\r\n".join([first, *own, *(header for header in headers if header), b"", b""])


def where(path: str, task_id: TaskId) -> str:
    return path.format(id=task_id, uuid=task_id.removeprefix("task_"), ID=task_id.upper())


@asynccontextmanager
async def connected(
    url: str, tls: ssl.SSLContext | None = None, *, room_bytes: int = 0
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection; with `room_bytes` the kernel takes in little that is not read."""
    speaking = socket.socket()
    speaking.setblocking(False)
    if room_bytes:
        speaking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
    await asyncio.get_running_loop().sock_connect(speaking, ("127.0.0.1", int(url.rpartition(":")[2])))
    name = "localhost" if tls else None
    reader, writer = await asyncio.open_connection(sock=speaking, limit=2**25, ssl=tls, server_hostname=name)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def exchanged(url: str, pieces: Sequence[bytes]) -> bytes:
    """All that is said in answer to these, until the connection is closed."""
    async with connected(url) as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)  # so that it comes by itself
        return await closing(reader)


async def closing(reader: asyncio.StreamReader) -> bytes:
    """All that is said before the connection is closed, which it must be soon."""
    async with asyncio.timeout(SOON_S):
        return await reader.read()


async def one(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One answer: its head, and its body."""
    async with asyncio.timeout(SOON_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        return head, await reader.readexactly(int(length[1]) if length else 0)


REQUESTS = st.one_of(
    st.tuples(
        st.just("GET"), st.sampled_from(POLLED), st.sampled_from(PLAIN), st.sampled_from(["tt_dev", "sk_nanonets"])
    ),
    st.tuples(st.just("GET"), st.sampled_from(POLLED + ELSE), st.sampled_from(PLAIN + ODD), st.just("tt_dev")),
    st.tuples(
        st.sampled_from(["GET", "HEAD", "PUT"]),
        st.sampled_from(POLLED + ELSE + ABSENT),
        st.just(b""),
        st.just("tt_dev"),
    ),
    st.tuples(st.just("GET"), st.sampled_from(POLLED), st.just(b"Content-Length: 3"), st.just("tt_unknown")),
)
"""One of a client's: its method, path, header and token."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.lists(REQUESTS, min_size=1, max_size=6),
    end=st.sampled_from([*LAST, b"1.0", b"1.0 keep"]),
    cuts=st.lists(st.integers(0, 1_500), max_size=4),
    begin=st.sampled_from([b"", b"\r\n"]),
)
async def test_whatever_is_asked_in_one_connection_is_answered_as_on_uvicorns_way(
    sides: Both, said: list[tuple[str, str, bytes, str]], end: bytes, cuts: list[int], begin: bytes
):
    task_id = await sides.api.begin(start_run(1))
    text = begin
    for method, path, header, token in said:
        body = b"abc" if header == b"Content-Length: 3" else b""
        text += asking(where(path, task_id), header, method=method, token=token) + body + begin
    version, header = ("1.0", b"Connection: keep-alive" if b"keep" in end else b"") if end[:1] == b"1" else ("1.1", end)
    text += asking(f"/tasks/{task_id}", header, version=version)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    answers = await sides.same([text[a:b] for a, b in pairwise(places)])
    assert answers.count(b"HTTP/1.1 ") >= 1
    assert answers.endswith(b"}")


async def test_plain_polls_are_answered_at_once_and_all_else_is_not(sides: Both):
    task_id = await sides.api.begin(start_run(1))
    async with connected(sides.ours) as (reader, writer):
        for path in POLLED:
            for header in PLAIN:
                writer.write(asking(where(path, task_id), header))
                head, _ = await one(reader)
                assert head.startswith((b"HTTP/1.1 200 OK\r\ndate: ", b"HTTP/1.1 304 Not Modified\r\ndate: "))
        assert (sides.seen.answered, sides.seen.passed_on) == (len(POLLED) * len(PLAIN), 0)
        for path in ELSE[:5]:
            writer.write(asking(where(path, task_id)))
            await one(reader)
        assert (sides.seen.answered, sides.seen.passed_on) == (len(POLLED) * len(PLAIN), 5)
        for header in LAST:
            assert (await exchanged(sides.ours, [asking(f"/tasks/{task_id}", header)])).startswith(
                b"HTTP/1.1 200 OK\r\n"
            )
        assert sides.seen.answered == len(POLLED) * len(PLAIN)


async def test_answers_keep_the_order_of_their_requests_whichever_way_each_takes(sides: Both):
    task_id = await sides.api.begin()
    async with connected(sides.ours) as (reader, writer):
        odd = (b"", b"", b"Prefer: wait=0", b"", b"Cache-Control: no-cache", b"")
        writer.write(b"".join(asking(f"/tasks/{task_id}", odd[n % 6], b"X-Request-ID: %d" % n) for n in range(300)))
        for n in range(300):
            head, body = await one(reader)
            assert b"x-request-id: %d\r\n" % n in head
            assert task_id.encode() in body
        assert sides.seen.answered + sides.seen.passed_on == 300
        assert sides.seen.answered >= 2  # those before the first that has to wait
        assert sides.server.server_state.total_requests == 300


async def test_who_asks_for_much_in_one_piece_leaves_others_their_turn(sides: Both):
    task_id = await sides.api.begin()
    async with connected(sides.ours) as (reader, writer):
        writer.write(asking(f"/tasks/{task_id}") * 300)
        for _ in range(300):
            assert (await one(reader))[0].startswith(b"HTTP/1.1 200 OK")
    assert IN_A_ROW <= sides.seen.answered < 300
    assert sides.seen.answered + sides.seen.passed_on == 300


async def test_who_asks_and_does_not_read_fills_no_memory_and_misses_nothing_later(sides: Both):
    task_id = await sides.api.begin()
    async with connected(sides.ours, room_bytes=4_096) as (reader, writer):
        writer.write(asking(f"/tasks/{task_id}"))
        answer = len(b"".join(await one(reader)))
        transport = sides.spoken.transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        writer.write(b"".join(asking(f"/tasks/{task_id}", b"X-Request-ID: %d" % n) for n in range(MANY)))
        await until(lambda: sides.spoken.flow.write_paused and bool(sides.spoken.pipeline))
        assert transport.get_write_buffer_size() <= transport.get_write_buffer_limits()[1] + 2 * answer
        writer.transport.resume_reading()
        for n in range(MANY):
            head, _ = await one(reader)
            assert b"x-request-id: %d\r\n" % n in head
    assert sides.seen.answered + sides.seen.passed_on == MANY + 1


async def polled(url: str, task_id: TaskId) -> tuple[bytes, bytes]:
    async with connected(url) as (reader, writer):
        writer.write(asking(f"/tasks/{task_id}"))
        return await one(reader)


async def test_a_stop_closes_who_was_answered_and_loses_no_answer(sides: Both):
    task_id = await sides.api.begin()
    async with connected(sides.ours) as (idle, writer), connected(sides.ours) as (amid, other):
        writer.write(asking(f"/tasks/{task_id}"))
        other.write(asking(f"/tasks/{task_id}") + asking(f"/tasks/{task_id}")[:40])
        await until(lambda: sides.seen.answered == 2)
        sides.server.should_exit = True
        for reader in (idle, amid):
            said = await closing(reader)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200"]
            assert said.endswith(b"}")


async def test_a_connection_is_kept_until_nothing_was_asked_for_a_while(api: Api):
    task_id = await api.begin()
    seen = Seen(api)
    async with answering(seen, api.rooms, keep_alive_s=1) as (url, server), connected(url) as (reader, writer):
        for _ in range(3):
            writer.write(asking(f"/tasks/{task_id}"))
            await one(reader)
        assert len(server.server_state.connections) == 1
        assert await closing(reader) == b""
    assert (seen.answered, seen.passed_on) == (3, 0)


@pytest.mark.parametrize("begun", [b"GET /tasks/x HTTP/1.1\r\nHost:", b"\r\n", b"G"])
async def test_who_was_answered_and_does_not_end_the_next_request_is_let_go(
    sides: Both, monkeypatch: pytest.MonkeyPatch, begun: bytes
):
    task_id = await sides.api.begin()
    async with connected(sides.ours) as (reader, writer):
        writer.write(asking(f"/tasks/{task_id}"))
        await one(reader)
        monkeypatch.setattr(app.serving, "HEAD_S", 0.2)
        writer.write(begun)
        assert await closing(reader) == b""


async def test_what_can_not_be_parsed_after_a_poll_is_told_after_its_answer(sides: Both):
    task_id = await sides.api.begin()
    told = await exchanged(sides.ours, [asking(f"/tasks/{task_id}") + b"no request\r\n\r\n"])
    assert re.findall(rb"HTTP/1.1 (\d+)", told) == [b"200", b"400"]


async def test_a_fault_at_once_is_logged_and_costs_nobody_an_answer(api: Api):
    task_id = await api.begin()
    broken = Broken(api)
    async with answering(broken, api.rooms) as (url, _):
        with capture_logs() as logs:
            head, _ = await polled(url, task_id)
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert [line["event"] for line in logs] == ["http.fault", "http.request"]
    assert broken.passed_on == 1


async def test_both_ways_count_and_log_the_same(sides: Both):
    task_id = await sides.api.begin()
    for path in POLLED:
        request = asking(where(path, task_id), b"X-Request-ID: mine")
        seen: list[list[dict[str, object]]] = []
        for url in (sides.ours, sides.theirs):
            before = sides.api.metric("http_requests_total", status="200")
            async with connected(url) as (reader, writer):
                with capture_logs() as logs:
                    writer.write(request)
                    await one(reader)
                seen.append([{**line, "took_ms": 0} for line in logs])
                assert sides.api.metric("http_requests_total", status="200") == before + 1
        assert seen[0] == seen[1] != []
    assert (sides.seen.answered, sides.seen.passed_on) == (len(POLLED), 0)


async def test_what_the_leader_must_be_asked_for_is_not_answered_at_once(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(reads="strict")) as api, both(api) as sides:
        task_id = await api.begin(start_run(1))
        await sides.same([asking(f"/tasks/{task_id}", b"Connection: keep-alive") + asking("/x", LAST[0])])
        assert sides.seen.answered == 0
        assert sides.seen.passed_on > 0


async def test_both_ways_draw_on_one_budget_and_refuse_together(nats_address: NatsAddress):
    limits = LimitSettings(niyra_poll_limit=6)
    async with running(nats_address, http=HttpSettings(reads="bounded", limits=limits)) as api, both(api) as sides:
        await api.rooms.tokens.add("tt_bound", DEV, ("niyra:tasks:read",))
        await api.rooms.tokens.all()
        task_id = await api.begin()
        told: list[tuple[bytes, bytes]] = []
        for n in range(8):
            async with connected((sides.ours, sides.theirs)[n % 2]) as (reader, writer):
                writer.write(asking(f"/v1/public/tasks/{task_id}", token="tt_bound"))
                head, _ = await one(reader)
                told += re.findall(rb"(?s)HTTP/1.1 (\d+).*x-ratelimit-remaining: (\d+)", head)
        assert told == [*((b"200", b"%d" % left) for left in range(5, -1, -1)), *[(b"429", b"0")] * 2]
        assert sides.seen.answered == 3


async def test_below_a_path_polls_are_answered_at_once_as_well(nats_address: NatsAddress):
    http = HttpSettings(reads="bounded", root_path="/up")
    async with running(nats_address, http=http) as api, both(api, root_path="/up") as sides:
        task_id = await api.begin()
        for path in POLLED:
            await sides.same([asking(where(path, task_id)) + asking("/x", LAST[0])])
        assert sides.seen.answered == len(POLLED)


def certified(directory: Path) -> Path:
    """A file with a certificate and its key."""
    asked = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    paths = ("-keyout", directory / "key.pem", "-out", directory / "certificate.pem")
    subprocess.run(["openssl", *asked.split(), *paths], capture_output=True, check=True)
    file = directory / "both.pem"
    file.write_bytes((directory / "key.pem").read_bytes() + (directory / "certificate.pem").read_bytes())
    return file


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_polls_over_tls_are_answered_at_once_as_well(api: Api, tmp_path: Path):
    file = await asyncio.to_thread(certified, tmp_path)
    task_id = await api.begin()
    seen = Seen(api)
    async with answering(seen, api.rooms, certificate=file) as (url, _):
        trusting = ssl.create_default_context(cafile=str(file))
        async with connected(url, trusting) as (reader, writer):
            for _ in range(3):
                writer.write(asking(f"/tasks/{task_id}"))
                head, body = await one(reader)
                assert head.startswith(b"HTTP/1.1 200 OK")
                assert task_id.encode() in body
    assert (seen.answered, seen.passed_on) == (3, 0)
