"""Shannon's stream over a WebSocket, by the client library that its SDK has."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs
from websockets import ClientConnection, ConnectionClosedError, InvalidStatus, connect

from app.commands import CancelTask, Command
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Owner
from tests.api import DEV, Api, running
from tests.dialects.shannon import PREFIX
from tests.lifecycle.commands import complete, finish_step, produce, start_run, start_step
from tests.log.logs import SOON_S, until
from tests.walk.wire import Wire

WORKED: list[Command] = [
    start_run(),
    start_step(),
    finish_step(kind="tool", name="search"),
    produce("a\u2028b", step=1),
]


@asynccontextmanager
async def socket_of(
    api: Api, task_id: str, query: str = "", *, token: str | None = "", **more: socket.socket
) -> AsyncGenerator[ClientConnection]:
    """An open socket; `token`: None sends none."""
    headers = {} if token is None else {"X-API-Key": token or api.token}
    url = f"{api.url.replace('http', 'ws')}{PREFIX}/api/v1/stream/ws?workflow_id={task_id}{query}"
    async with connect(url, additional_headers=headers, **more) as client, asyncio.timeout(SOON_S):  # pyright: ignore[reportArgumentType]  # its own options
        yield client


async def story(api: Api, task_id: str, query: str = "") -> tuple[list[dict[str, object]], int | None]:
    """All messages, and the code by which it was closed."""
    async with socket_of(api, task_id, query) as client:
        return [json.loads(message) async for message in client], client.close_code


async def until_cut(client: ClientConnection) -> list[dict[str, object]]:
    """What comes until it is broken off, which it must be."""
    seen: list[dict[str, object]] = []
    with pytest.raises(ConnectionClosedError):
        await _take(client, seen)
    return seen


async def _take(client: ClientConnection, seen: list[dict[str, object]]) -> None:
    async for message in client:
        seen.append(json.loads(message))


async def test_each_event_is_a_message_and_the_last_is_followed_by_a_close(api: Api):
    task_id = await api.begin()
    async with socket_of(api, task_id) as client:
        live = [json.loads(await client.recv())]
        for command in WORKED:
            await api.tell(task_id, command)
            live.append(json.loads(await client.recv()))
        await api.tell(task_id, complete())
        live += [json.loads(message) async for message in client]
        assert client.close_code == 1000
    types = ["WORKFLOW_STARTED", "AGENT_STARTED", "TOOL_INVOKED", "TOOL_OBSERVATION", "LLM_PARTIAL"]
    ends = ["LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED", "STREAM_END"]
    assert [event["type"] for event in live] == types + ends
    assert live[4]["message"] == "a\u2028b"
    assert await story(api, task_id) == (live, 1000)
    for n, event in enumerate(live, 1):
        left = live[n:] or live[-1:]
        for known in (event["stream_id"], event["seq"]):
            assert await story(api, task_id, f"&last_event_id={known}") == (left, 1000)
    assert await story(api, task_id, "&types=thread.message.delta") == ([live[4], live[-1]], 1000)


async def test_who_may_not_have_it_is_told_so_before_there_is_a_socket(api: Api):
    task_id = await api.begin(CancelTask(by="ann"))
    await api.rooms.tokens.add("tt_eve", Owner("eve"), ("tasks:read",))
    await api.rooms.tokens.add("tt_writer", DEV, ("niyra:ask",))
    asked = [
        (task_id, "", None, 401, "Unauthorized"),
        (task_id, "", "wrong", 401, "Unauthorized"),
        (task_id, f"&token={api.token}", "wrong", 401, "Unauthorized"),
        (task_id, "", "tt_eve", 404, "Workflow not found"),
        ("task_abc123", "", "", 404, "Workflow not found"),
        ("", "", "", 400, "Invalid or missing workflow_id"),
        ("a%20b", "", "", 400, "Invalid or missing workflow_id"),
        (task_id, "&last_event_id=x", "", 400, "Invalid last_event_id"),
    ]
    for asked_id, query, token, status, error in asked:
        with pytest.raises(InvalidStatus) as refused:
            async with socket_of(api, asked_id, query, token=token):
                raise AssertionError(asked_id, query)
        response = refused.value.response
        assert response.body is not None
        assert (response.status_code, json.loads(response.body)) == (status, {"error": error}), (asked_id, query)
    with pytest.raises(InvalidStatus, match="403"):
        async with socket_of(api, task_id, token="tt_writer"):
            raise AssertionError
    for name in ("api_key", "token"):
        async with socket_of(api, task_id, f"&{name}={api.token}", token=None) as client:
            assert len([message async for message in client]) == 4


async def test_what_the_client_says_is_not_read_and_must_be_short(api: Api):
    task_id = await api.begin()
    async with socket_of(api, task_id) as client:
        await client.recv()
        for n in range(50):
            await client.send(f"subscribe {n}")
        await api.tell(task_id, start_run())
        assert json.loads(await client.recv())["type"] == "AGENT_STARTED"
        await asyncio.wait_for(await client.ping(), SOON_S)
        await client.send("x" * 600)
        with pytest.raises(ConnectionClosedError, match="1009"):
            await client.recv()
    await until(lambda: api.metric("open_streams") == 0)


async def test_a_cut_is_no_normal_close(api: Api):
    made = await api.rooms.tokens.add("tt_short", DEV, ("tasks:read",))
    task_id = await api.begin()
    async with socket_of(api, task_id, token="tt_short") as hers, socket_of(api, task_id) as mine:
        for client in (hers, mine):
            await client.recv()
        await api.rooms.tokens.revoke(made.id)
        with pytest.raises(ConnectionClosedError, match=r"1008.+the token is no longer valid"):
            await hers.recv()
        with pytest.raises(InvalidStatus, match="401"):
            async with socket_of(api, task_id, token="tt_short"):
                raise AssertionError
        api.rooms.streams.drain()
        with pytest.raises(ConnectionClosedError, match="1013"):
            await mine.recv()
    await until(lambda: api.metric("open_streams") == 0)
    assert api.metric("streams_cut_total", why="drain") == 1


async def test_a_client_that_reads_no_more_is_cut_and_dropped_and_resumes(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_stream_bytes=400_000)) as api:
        task_id = await api.begin(start_run())
        asking = socket.socket()
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        asking.setblocking(False)
        host, _, port = api.url.removeprefix("http://").partition(":")
        await asyncio.get_running_loop().sock_connect(asking, (host, int(port)))
        async with socket_of(api, task_id, sock=asking) as client:
            said, text = 0, "x" * 100_000
            while api.metric("streams_cut_total", why="slow") == 0:
                assert said < 500, "it takes in more than any kernel should"
                await api.tell(task_id, produce(text, offset=said * len(text)))
                said += 1
            seen = await until_cut(client)
        await until(lambda: api.metric("open_streams") == 0)
        await api.tell(task_id, complete())
        whole, _ = await story(api, task_id)
        assert seen == whole[: len(seen)]
        assert len(seen) < len(whole)
        rest = await story(api, task_id, f"&last_event_id={seen[-1]['stream_id']}")
        assert rest == (whole[len(seen) :], 1000)


async def test_clients_that_leave_rudely_leak_nothing(api: Api):
    task_id = await api.begin()
    for _ in range(20):
        async with socket_of(api, task_id) as client:
            await client.recv()
            client.transport.abort()
    await until(lambda: api.metric("open_streams") == 0)
    assert api.rooms.streams.readers == set()
    async with api.rooms.tasks.attach(DEV, task_id) as attached:
        assert (attached.readers, attached.pins) == (set(), 1)


def opening(api: Api, more: dict[str, str] | None = None) -> dict[str, str]:
    """The headers that ask for a socket."""
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    return asked | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "X-API-Key": api.token} | (more or {})


async def test_who_leaves_before_the_socket_is_open_is_no_fault(api: Api):
    path = f"{PREFIX}/api/v1/stream/ws?workflow_id={await api.begin()}"
    with capture_logs() as lines:
        for _ in range(20):
            wire = await Wire.ask(api.url, path, opening(api))
            await wire.writer.drain()
            wire.reset()
        async with socket_of(api, path.rpartition("=")[2]) as client:
            await client.recv()
        await until(lambda: api.metric("open_streams") == 0)
    assert [line for line in lines if line["log_level"] == "error"] == []


async def test_who_asks_for_a_socket_with_a_body_is_told_that_there_is_none(api: Api):
    wire = await Wire.ask(api.url, f"{PREFIX}/api/v1/stream/ws", opening(api, {"Content-Length": "5"}))
    assert (await wire.head()).status == 400
    assert await wire.reader.read() == b""
    await wire.close()
