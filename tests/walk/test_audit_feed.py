"""The audit feed over real HTTP: every record exactly once, in order, at each reader's own pace; and every cut."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app import streams, telling
from app.audit_answers import LAST
from app.commands import CancelTask
from app.feed import RESET, RETRY
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.cursor import event_id
from eventstore.events import Owner
from eventstore.log import Arrival
from eventstore.server import EmbeddedServer
from projections.cloudevents import cloudevent_of, type_of
from projections.lines import arrival_of, line_of
from tests.api import DEV, Api, running
from tests.log.logs import SOON_S, created, gone_back, jetstream, new_task, record_of, until
from tests.walk.serving import serving
from tests.walk.wire import Wire, frames_in

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
EVE = Owner("eve")


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


async def ask(
    api: Api, accept: str, query: str = "", *, last: str = "", token: str | None = None, room_bytes: int = 0
) -> Wire:
    """A feed, its head not read yet."""
    headers = {"Accept": accept, "X-API-Key": token or api.token} | ({"Last-Event-ID": last} if last else {})
    return await Wire.ask(api.url, f"/events{query}", headers, room_bytes=room_bytes)


async def fill(api: Api, count: int, *, owner: Owner = DEV, title: str = "a task") -> None:
    """So many more records, each of a task of its own."""
    log = api.rooms.tasks.log
    await asyncio.gather(*[log.append(owner, new_task(), record_of(created(title)), 0) for _ in range(count)])


def frame(arrival: Arrival) -> bytes:
    head = f"id: {event_id(arrival)}\nevent: {type_of(arrival)}\ndata: "
    return head.encode() + line_of(arrival) + b"\n"


async def frames(api: Api) -> list[bytes]:
    return [frame(arrival) for arrival in await api.arrivals()]


def id_in(framed: bytes) -> str:
    return framed.partition(b"\n")[0].removeprefix(b"id: ").decode()


def lines_in(text: bytes) -> list[bytes]:
    """Whole lines, without the blank ones; what was broken off in the middle is none."""
    return [line + b"\n" for line in text.split(b"\n")[:-1] if line]


async def let_go(api: Api) -> None:
    """Nothing is left of any feed, at the server neither."""
    await until(lambda: api.metric("audit_feeds") == 0)
    assert api.rooms.streams.readers == set()
    words = ("AuditStream", "coro=<gone", "EventSourceResponse")
    await until(lambda: not [one for one in asyncio.all_tasks() if any(word in str(one) for word in words)])


async def cut(wire: Wire) -> bytes:
    """It is broken off, and nothing about it looks like an end; what was left of it."""
    rest, ended = await wire.rest()
    await wire.close()
    assert not ended
    return rest


async def test_lines_are_the_log_to_its_end_byte_for_byte(api: Api):
    await fill(api, 1_000)
    await fill(api, 5, owner=EVE)
    wire = await (await ask(api, NDJSON)).head()
    assert (wire.status, wire.headers["content-type"]) == (200, NDJSON)
    assert wire.headers[LAST.lower()] == "1005"
    assert await wire.rest() == (b"".join(map(line_of, await api.arrivals())), True)
    await wire.close()
    wire = await (await ask(api, NDJSON, "?owner=eve&limit=3")).head()
    text, ended = await wire.rest()
    assert (len(lines_in(text)), ended) == (3, True)
    await wire.close()
    await let_go(api)


async def test_where_there_is_nothing_the_end_comes_at_once(api: Api):
    await fill(api, 10)
    async with asyncio.timeout(SOON_S / 4):
        for query in ("?after=10", "?owner=nobody", "?type=task.failed", f"?task_id={new_task()}"):
            wire = await (await ask(api, NDJSON, query)).head()
            assert await wire.rest() == (b"", True), query
            await wire.close()


async def test_events_are_replayed_and_then_live(api: Api):
    await fill(api, 300)
    wire = await (await ask(api, SSE)).head()
    assert wire.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (wire.headers["cache-control"], wire.headers["x-accel-buffering"]) == ("no-cache", "no")
    got = await wire.frames(300)
    task_id = await api.begin()
    got += await wire.frames(1)
    await api.tell(task_id, CancelTask(by="ann"))
    got += await wire.frames(1)
    assert got == await frames(api)
    assert b"event: task.cancelled\n" in got[-1]
    await wire.close()
    await let_go(api)


async def test_a_stream_of_events_ends_after_its_limit(api: Api):
    await fill(api, 5)
    wire = await (await ask(api, SSE, "?limit=2")).head()
    assert await wire.rest() == (RETRY + b"".join((await frames(api))[:2]), True)
    await wire.close()


async def test_streams_are_cloudevents_where_these_are_asked_for(api: Api):
    await fill(api, 3)
    events = [cloudevent_of(arrival) for arrival in await api.arrivals()]
    wire = await (await ask(api, NDJSON, "?format=cloudevents")).head()
    assert (await wire.rest())[0].splitlines() == events
    await wire.close()
    wire = await (await ask(api, SSE, "?format=cloudevents&limit=3")).head()
    data = [one.split(b"\n")[2] for one in frames_in((await wire.rest())[0])]
    assert data == [b"data: " + event for event in events]
    await wire.close()


CONNECTIONS = st.lists(
    st.tuples(st.sampled_from([SSE, NDJSON]), st.integers(0, 25), st.booleans(), st.integers(0, 6)), max_size=6
)
"""Of one reader: how it asks, how much it takes before it breaks off, rudely or not, and what is written meanwhile."""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(connections=CONNECTIONS, filtered=st.booleans())
async def test_wherever_a_reader_is_cut_it_goes_on_with_each_record_once(
    api: Api, connections: list[tuple[str, int, bool, int]], filtered: bool
):
    query = "?owner=eve" if filtered else "?follow=true"
    begun = await api.rooms.tasks.log.last_sequence()
    got: list[Arrival] = []

    async def connect(accept: str) -> Wire:
        last = event_id(got[-1]) if got else str(begun)
        if accept == SSE:
            return await (await ask(api, SSE, f"{query}&after=0", last=last)).head()
        return await (await ask(api, NDJSON, f"{query}&follow=true&after={last}")).head()

    await fill(api, 10)
    await fill(api, 10, owner=EVE)
    for accept, takes, rudely, more in connections:
        wire = await connect(accept)
        writing = asyncio.ensure_future(fill(api, more, owner=EVE))
        there = [one for one in await api.arrivals() if one.sequence > (got[-1].sequence if got else begun)]
        mine = [one for one in there if not filtered or one.subject.split(".")[2] == EVE]
        got += await taken(wire, accept, min(takes, len(mine)))
        await writing
        wire.reset() if rudely else await wire.close()
    wire = await connect(NDJSON if filtered else SSE)
    wanted = [
        one
        for one in await api.arrivals()
        if one.sequence > begun and (not filtered or one.subject.split(".")[2] == EVE)
    ]
    got += await taken(wire, NDJSON if filtered else SSE, len(wanted) - len(got))
    await wire.close()
    assert [(one.sequence, one.subject, one.stored) for one in got] == [
        (one.sequence, one.subject, one.stored) for one in wanted
    ]


async def taken(wire: Wire, accept: str, count: int) -> list[Arrival]:
    """The next so many records of a feed."""
    if accept == SSE:
        return [arrival_of(one.split(b"\ndata: ")[1][:-1]) for one in await wire.frames(count)]
    text = b""
    while len(lines_in(text)) < count:
        text += await wire.chunk()
    return [arrival_of(line) for line in lines_in(text)[:count]]


async def test_many_feeds_that_come_at_once_are_all_opened(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_audit_feeds=1_000)) as api:
        await fill(api, 1)
        wires = await asyncio.gather(*[ask(api, NDJSON, "?follow=true") for _ in range(250)])
        for wire in wires:
            assert (await wire.head()).status == 200
        await until(lambda: api.metric("audit_feeds") == 250)
        for wire in wires:
            wire.reset()
        await let_go(api)


async def test_a_slow_reader_has_its_own_pace_and_a_fast_one_has_its(api: Api):
    title = "x" * 8_000
    await fill(api, 800, title=title)
    slow = await ask(api, NDJSON, "?follow=true", room_bytes=4_096)
    slow_events = await ask(api, SSE, room_bytes=4_096)
    await until(lambda: api.metric("audit_feeds") == 2)
    fast = await (await ask(api, SSE)).head()
    got = await fast.frames(800)
    await fill(api, 200, title=title)
    got += await fast.frames(200)
    assert got == await frames(api)
    # Nobody cut the slow ones: what they have not taken is in the log, not in our memory.
    assert [one.sequence for one in await taken(await slow.head(), NDJSON, 1_000)] == [*range(1, 1_001)]
    assert await (await slow_events.head()).frames(1_000) == got
    for wire in (slow, slow_events, fast):
        await wire.close()
    await let_go(api)


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_an_idle_feed_is_pinged(nats_address: NatsAddress, accept: str):
    async with running(nats_address, http=HttpSettings(ping_s=0.05)) as api:
        await fill(api, 1)
        wire = await (await ask(api, accept, "?follow=true&type=task.created")).head()
        ping = b": ping\n\n" if accept == SSE else b"\n"
        pings, pieces = 0, list[bytes]()
        while pings < 3:
            pieces.append(await wire.chunk())
            pings += pieces[-1] == ping
        (record,) = await api.arrivals()
        said = [piece for piece in pieces if piece != ping]
        assert said == ([RETRY, frame(record)] if accept == SSE else [line_of(record)])
        await wire.close()


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_client_that_takes_nothing_more_is_dropped(api: Api, monkeypatch: pytest.MonkeyPatch, accept: str):
    monkeypatch.setattr(telling, "STALLED_S", 0.3)
    monkeypatch.setattr(streams, "LINGER_S", 0.1)
    await fill(api, 200, title="x" * 100_000)
    wire = await ask(api, accept, "?follow=true", room_bytes=4_096)
    await until(lambda: api.metric("streams_cut_total", why="stalled") == 1)
    await let_go(api)
    await cut(await wire.head())


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_drain_cuts_the_open_feeds_and_those_that_come(api: Api, accept: str):
    await fill(api, 1)
    wire = await (await ask(api, accept, "?follow=true")).head()
    await taken(wire, accept, 1)
    api.rooms.streams.drain()
    assert await cut(wire) == b""
    late = await ask(api, accept, "?follow=true")
    await cut(await late.head())
    await let_go(api)
    assert api.metric("streams_cut_total", why="drain") == 2


@pytest.mark.parametrize("accept", [SSE, NDJSON])
async def test_a_revoked_token_breaks_its_feeds_and_no_others(api: Api, accept: str):
    made = await api.rooms.tokens.add("tt_short", DEV, ("audit",))
    await fill(api, 1)
    hers, mine = [await ask(api, accept, "?follow=true", token=token) for token in ("tt_short", api.token)]
    for wire in (hers, mine):
        await taken(await wire.head(), accept, 1)
    await api.rooms.tokens.revoke(made.id)
    async with asyncio.timeout(5):
        await cut(hers)
    assert api.metric("streams_cut_total", why="token_changed") == 1
    await fill(api, 1)
    assert [one.sequence for one in await taken(mine, accept, 1)] == [2]
    await mine.close()


async def test_clients_that_leave_at_once_leave_nothing(api: Api):
    await fill(api, 500)
    for accept in (SSE, NDJSON) * 10:
        early = await ask(api, accept, "?follow=true")
        await early.writer.drain()
        early.reset()
        late = await (await ask(api, accept, "?follow=true")).head()
        late.reset()
    await let_go(api)


async def test_a_token_may_come_in_the_query_of_events_only(api: Api):
    await fill(api, 1)
    for accept, status in ((SSE, 200), (NDJSON, 401), ("application/json", 401)):
        wire = await (await Wire.ask(api.url, f"/events?limit=1&token={api.token}", {"Accept": accept})).head()
        assert wire.status == status
        await wire.close()


async def test_a_cursor_of_another_life_is_answered_by_a_reset_and_everything(api: Api):
    await fill(api, 3)
    all_frames = await frames(api)
    first, second = id_in(all_frames[0]), id_in(all_frames[1])
    for cursor in (f"{first.partition('-')[0]}-{second.partition('-')[2]}", "4", "99-256"):
        wire = await (await ask(api, SSE, last=cursor)).head()
        assert await wire.frames(4) == [RESET, *all_frames], cursor
        await wire.close()


async def test_the_server_is_killed_in_the_middle_of_feeds(server: EmbeddedServer):
    async with running(server.address) as api:
        await fill(api, 10_000)
        events = await (await ask(api, SSE, room_bytes=65_536)).head()
        lines = await (await ask(api, NDJSON, room_bytes=65_536)).head()
        got = await events.frames(500)
        text = await lines.chunk()
        await server.kill()
        got += await events.frames(100)
        await server.restart()
        await until(lambda: api.rooms.connection.connected)
        await fill(api, 10)
        got += await events.frames(10_010 - 600)
        rest, ended = await lines.rest()
        assert ended
        everything = await api.arrivals()
        assert got == list(map(frame, everything))
        assert text + rest.replace(b"\n\n", b"\n") == b"".join(map(line_of, everything[:10_000]))
        await events.close()
        await lines.close()


async def test_a_log_that_went_back_cuts_its_feeds_and_resets_those_who_resume(server: EmbeddedServer, tmp_path: Path):
    task_id = new_task()
    async with running(server.address) as api, jetstream(server.address) as log:
        begun = await api.rooms.tasks.log.last_sequence()
        assert begun == 0
        wire = await (await ask(api, SSE)).head()
        await gone_back(server, log, tmp_path, task_id)
        got = await wire.frames(20)
        await server.restart()
        await cut(wire)
        assert api.metric("streams_cut_total", why="went_back") == 1
        wire = await (await ask(api, SSE, last=id_in(got[-1]))).head()
        assert await wire.frames(11) == [RESET, *got[:10]]
        await wire.close()


async def test_a_service_that_is_told_to_stop_breaks_its_feeds_and_ends(tmp_path: Path):
    async with serving(tmp_path / "kept") as service:
        wires: list[Wire] = []
        for accept in (SSE, NDJSON):
            headers = {"Accept": accept, "X-API-Key": service.token}
            wires.append(await (await Wire.ask(service.url, "/events?follow=true", headers)).head())
        async with service.client() as client:
            assert (await client.post("/tasks", json={"input": {"steps": []}})).status_code == 201
        for accept, wire in zip((SSE, NDJSON), wires, strict=True):
            await taken(wire, accept, 1)
        assert await service.stop(signal.SIGTERM) == 0
        for wire in wires:
            await cut(wire)
        assert "ASGI callable" not in service.logs
        assert "Traceback" not in service.logs
