"""A task's stream over real HTTP: exact frames, resuming, the end, and every way to be cut off."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta

import pytest

from app.commands import CancelTask, Command
from app.feed import RESET, RETRY
from app.settings import HttpSettings
from app.telling import HEADERS
from eventstore.connection import NatsAddress
from eventstore.cursor import event_id
from eventstore.events import TaskId
from tests.api import DEV, Api, running
from tests.lifecycle.commands import complete, finish_step, produce, start_run, start_step
from tests.log.logs import SOON_S, until
from tests.walk.wire import Wire, frames_in

STREAM = {"Accept": "text/event-stream"}
WORKED: list[Command] = [start_run(), start_step(), finish_step(kind="tool", name="search"), produce("a\nb", step=1)]


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


async def stream(
    api: Api, task_id: TaskId, query: str = "", *, token: str | None = None, last: str = "", room_bytes: int = 0
) -> Wire:
    """A stream of this task, its head not read yet."""
    headers = {**STREAM, "Authorization": f"Bearer {token or api.token}"}
    if last:
        headers["Last-Event-ID"] = last
    return await Wire.ask(api.url, f"/tasks/{task_id}/events{query}", headers, room_bytes=room_bytes)


async def whole(wire: Wire) -> list[bytes]:
    """All frames up to the end that was said."""
    await wire.head()
    assert wire.status == 200
    text, ended = await wire.rest()
    await wire.close()
    assert ended
    return frames_in(text)


async def ids(api: Api, task_id: TaskId) -> list[str]:
    return [event_id(recorded) for recorded in await api.rooms.tasks.log.read(DEV, task_id)]


async def let_go(api: Api) -> None:
    """Nothing is left of any stream."""
    await until(lambda: api.metric("open_streams") == 0)
    assert api.rooms.streams.readers == set()
    await until(lambda: streaming() == [])


def streaming() -> list[str]:
    """What is at work on a stream in this loop."""
    words = ("TaskStream", "coro=<gone", "coro=<_next", "run_asgi")
    return [str(task) for task in asyncio.all_tasks() if any(word in str(task) for word in words)]


async def test_an_ended_task_is_its_frames_and_an_end(api: Api):
    task_id = await api.begin(*WORKED, complete())
    wire = await (await stream(api, task_id)).head()
    assert wire.status == 200
    for name, value in HEADERS:
        assert wire.headers[name.decode()] == value.decode()
    assert await wire.rest() == (RETRY + b"".join(await api.frames(task_id)), True)
    await wire.close()
    await let_go(api)


async def test_a_frame_is_id_event_and_the_stored_record(api: Api):
    task_id = await api.begin(CancelTask(by="ann"))
    first, last = await api.rooms.tasks.log.read(DEV, task_id)
    frames = await whole(await stream(api, task_id))
    assert frames == [
        b"id: %b\nevent: task.created\ndata: %b\n\n" % (event_id(first).encode(), first.stored),
        b"id: %b\nevent: task.cancelled\ndata: %b\n\n" % (event_id(last).encode(), last.stored),
    ]


async def test_live_frames_are_those_that_a_replay_gives(api: Api):
    task_id = await api.begin()
    wire = await (await stream(api, task_id)).head()
    live = await wire.frames(1)
    for command in [*WORKED, complete()]:
        await api.tell(task_id, command)
        live += await wire.frames(1)
    assert await wire.rest() == (b"", True)
    await wire.close()
    assert live == await api.frames(task_id) == await whole(await stream(api, task_id))


async def test_resuming_anywhere_gives_what_comes_after(api: Api):
    task_id = await api.begin(*WORKED, complete())
    frames, known = await api.frames(task_id), await ids(api, task_id)
    for n, one in enumerate(known[:-1], 1):
        bare = one.partition("-")[0]
        assert await whole(await stream(api, task_id, last=one)) == frames[n:]
        assert await whole(await stream(api, task_id, f"?after={one}")) == frames[n:]
        assert await whole(await stream(api, task_id, f"?after={bare}")) == frames[n:]
        assert await whole(await stream(api, task_id, last=bare)) == frames[n:]
        # What the browser has seen since beats what its page was made with.
        assert await whole(await stream(api, task_id, f"?after={known[0]}", last=one)) == frames[n:]
        assert await whole(await stream(api, task_id, "?after=nonsense", last=one)) == frames[n:]
    assert await whole(await stream(api, task_id, "?after=0")) == frames


async def test_after_the_end_there_is_nothing_to_stream(api: Api):
    task_id = await api.begin(complete_by_cancel())
    await api.begin()
    end = (await ids(api, task_id))[-1]
    for query, last in (("", end), (f"?after={end}", ""), ("?after=2", ""), ("?after=3", ""), ("?after=99999", "")):
        wire = await (await stream(api, task_id, query, last=last)).head()
        assert (wire.status, wire.headers.get("content-length", "0")) == (204, "0")
        await wire.close()


def complete_by_cancel() -> Command:
    return CancelTask(by="ann")


async def test_a_cursor_of_another_life_is_answered_by_a_reset_and_the_whole_story(api: Api):
    task_id = await api.begin(*WORKED, complete())
    another = await api.begin()
    whole_story = [RESET, *await api.frames(task_id)]
    known = await ids(api, task_id)
    other_life = f"{known[1].partition('-')[0]}-{known[2].partition('-')[2]}"
    foreign = [other_life, (await ids(api, another))[0], "99999-256", f"{known[-1].partition('-')[0]}-1"]
    for cursor in foreign:
        assert await whole(await stream(api, task_id, last=cursor)) == whole_story, cursor
    running = await api.begin()
    for cursor in (other_life, "99999-256", "99999"):
        wire = await (await stream(api, running, last=cursor)).head()
        assert await wire.frames(2) == [RESET, *await api.frames(running)], cursor
        await wire.close()


async def test_what_is_no_cursor_is_a_bad_request(api: Api):
    task_id = await api.begin()
    for cursor in ("x", "-", "1-", "-1", "1-x", "1--2", "1.5", "1-2-3", "1" * 30, "%C2%B2", "0x10", ""):
        for accept in ("text/event-stream", "application/json"):
            answer = await api.client.get(f"/tasks/{task_id}/events?after={cursor}", headers={"Accept": accept})
            assert (answer.status_code, answer.json()["code"]) == (400, "bad_cursor"), cursor
        answer = await api.client.get(f"/tasks/{task_id}/events", headers={**STREAM, "Last-Event-ID": cursor or "?"})
        assert answer.status_code == 400


async def test_a_token_in_the_query_is_for_streams_only(api: Api):
    task_id = await api.begin(complete_by_cancel())
    wire = await Wire.ask(api.url, f"/tasks/{task_id}/events?token={api.token}", STREAM)
    assert await whole(wire) == await api.frames(task_id)
    refused: list[tuple[str, dict[str, str]]] = [
        (f"/tasks/{task_id}/events?token={api.token}", {}),
        (f"/tasks/{task_id}?token={api.token}", {}),
        (f"/tasks/{task_id}?token={api.token}", STREAM),
        (f"/tasks/{task_id}/events?token=wrong", STREAM),
        (f"/tasks/{task_id}/events?token=%ff%00", STREAM),
        (f"/tasks/{task_id}/events?token=", STREAM),
        (f"/tasks/{task_id}/events", STREAM),
    ]
    for path, headers in refused:
        wire = await (await Wire.ask(api.url, path, headers)).head()
        assert wire.status == 401, path
        await wire.close()


async def test_an_idle_stream_is_pinged(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(ping_s=0.02)) as api:
        task_id = await api.begin()
        wire = await (await stream(api, task_id)).head()
        text = b""
        while text.count(b": ping\n\n") < 3:
            text += await wire.chunk()
        await api.tell(task_id, complete_by_cancel())
        rest, ended = await wire.rest()
        assert ended
        assert frames_in(text + rest) == await api.frames(task_id)
        assert (text + rest).count(b"retry:") == 1
        await wire.close()


async def test_a_reader_that_does_not_read_is_cut_and_can_resume(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(max_stream_bytes=400_000)) as api:
        task_id = await api.begin(start_run())
        wire = await stream(api, task_id, room_bytes=4_096)
        await until(lambda: api.metric("open_streams") == 1)
        said, text = 0, "x" * 100_000
        while api.metric("streams_cut_total", why="slow") == 0:
            assert said < 500, "it takes in more than any kernel should"
            await api.tell(task_id, produce(text, offset=said * len(text)))
            said += 1
        await let_go(api)
        await api.tell(task_id, complete())
        received, ended = await (await wire.head()).rest()
        await wire.close()
        assert not ended
        frames, there = await api.frames(task_id), frames_in(received)
        assert there == frames[: len(there)]
        assert len(there) < len(frames)
        last = (await ids(api, task_id))[len(there) - 1] if there else ""
        assert await whole(await stream(api, task_id, last=last)) == frames[len(there) :]


async def cut(wire: Wire) -> None:
    """It is broken off, and nothing about it looks like an end."""
    _, ended = await wire.rest()
    await wire.close()
    assert not ended


async def test_a_drain_cuts_the_open_streams_and_those_that_come(api: Api):
    task_id = await api.begin()
    wire = await (await stream(api, task_id)).head()
    await wire.frames(1)
    api.rooms.streams.drain()
    await cut(wire)
    await cut(await (await stream(api, task_id)).head())
    await let_go(api)
    assert api.metric("streams_cut_total", why="drain") == 2


async def test_a_revoked_token_breaks_its_streams_and_no_others(api: Api):
    made = await api.rooms.tokens.add("tt_short", DEV, ("tasks:read",))
    task_id = await api.begin()
    hers, mine = await stream(api, task_id, token="tt_short"), await stream(api, task_id)
    for wire in (hers, mine):
        await (await wire.head()).frames(1)
    await api.rooms.tokens.revoke(made.id)
    async with asyncio.timeout(5):
        await cut(hers)
    again = await (await stream(api, task_id, token="tt_short")).head()
    assert again.status == 401
    await again.close()
    await api.tell(task_id, complete_by_cancel())
    assert await mine.frames(1) == (await api.frames(task_id))[1:]
    await mine.close()


async def test_an_expired_token_breaks_its_streams(api: Api):
    expires_at = datetime.now(UTC) + timedelta(seconds=1)
    await api.rooms.tokens.add("tt_short", DEV, ("tasks:read",), expires_at=expires_at)
    task_id = await api.begin()
    wire = await (await stream(api, task_id, token="tt_short")).head()
    await wire.frames(1)
    async with asyncio.timeout(6):
        await cut(wire)
    assert datetime.now(UTC) >= expires_at
    assert api.metric("streams_cut_total", why="token_expired") == 1


async def test_a_token_made_elsewhere_a_moment_ago_keeps_its_stream(api: Api, nats_address: NatsAddress):
    task_id = await api.begin()
    async with running(nats_address) as elsewhere:
        for n in range(10):
            await elsewhere.rooms.tokens.add(f"tt_{n}", DEV, ("tasks:read",))
            wire = await (await stream(api, task_id, token=f"tt_{n}")).head()
            await wire.frames(1)
            await api.rooms.tokens.all()  # by now its making was heard here, too
            assert api.metric("streams_cut_total", why="token_changed") == 0
            await wire.close()


async def test_a_reset_connection_leaks_nothing(api: Api):
    task_id = await api.begin()
    for _ in range(30):
        early = await stream(api, task_id)
        await early.writer.drain()
        early.reset()
        late = await (await stream(api, task_id)).head()
        await late.frames(1)
        late.reset()
    await let_go(api)
    async with api.rooms.tasks.attach(DEV, task_id) as attached:
        assert (attached.readers, attached.pins) == (set(), 1)


async def test_who_asked_for_more_behind_a_stream_and_has_left_is_noticed_and_no_fault(
    nats_address: NatsAddress, caplog: pytest.LogCaptureFixture
):
    async with running(nats_address, http=HttpSettings(ping_s=0.02)) as api:
        task_id = await api.begin()
        for _ in range(5):
            wire = await stream(api, task_id)
            request = f"GET /tasks/{task_id}/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            wire.writer.write(f"{request}Authorization: Bearer {api.token}\r\n\r\n".encode() * 2)
            await (await wire.head()).frames(1)
            wire.reset()
        await let_go(api)
    assert [record.message for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_a_reset_in_the_middle_of_a_large_frame_leaks_nothing(api: Api):
    task_id = await api.begin(start_run())
    wires = [await stream(api, task_id, room_bytes=4_096) for _ in range(5)]
    await until(lambda: api.metric("open_streams") == 5)
    for n in range(30):
        await api.tell(task_id, produce("x" * 100_000, offset=n * 100_000))
    for wire in wires:
        wire.reset()
    await let_go(api)


async def test_two_hundred_streams_of_one_task_are_one_story(api: Api):
    task_id = await api.begin()
    wires = await asyncio.gather(*[stream(api, task_id) for _ in range(200)])
    await asyncio.gather(*[wire.head() for wire in wires])
    assert api.metric("open_streams") == 200
    assert len(streaming()) >= 200
    reading = [asyncio.ensure_future(wire.rest()) for wire in wires]
    await api.tell(task_id, *WORKED, complete())
    async with asyncio.timeout(SOON_S):
        texts = await asyncio.gather(*reading)
    assert {text for text in texts} == {(RETRY + b"".join(await api.frames(task_id)), True)}
    for wire in wires:
        await wire.close()
    await let_go(api)
