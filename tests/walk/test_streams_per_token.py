"""How many streams one token may have open in a process: one more is refused, and one that is over counts no more."""

from collections.abc import Awaitable, Callable, Sequence

import pytest
from websockets import InvalidStatus, connect

from app.auth import Principal
from app.settings import HttpSettings
from eventstore.blobs import BUCKET, JetStreamBlobs
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.tokens import Scope
from tests.api import DEV, Api, running
from tests.lifecycle.commands import complete, produce, start_run
from tests.log.logs import until
from tests.walk.test_bounds import refusal
from tests.walk.wire import Wire

NARROW = 8_192
SCOPES: tuple[Scope, ...] = ("tasks:read", "tasks:write", "audit")
JSON, SSE = "application/json", "text/event-stream"

FEWS = HttpSettings(streams_per_token=2, max_stream_bytes=400_000)
End = Callable[[Api, TaskId, Wire, str], Awaitable[object]]


async def opened(api: Api, path: str, accept: str, token: str = "tt_few", room_bytes: int = 0) -> Wire:
    headers = {"Accept": accept, "Authorization": f"Bearer {token}"}
    return await (await Wire.ask(api.url, path, headers, room_bytes=room_bytes)).head()


def paths(task_id: str) -> list[tuple[str, str]]:
    """Every way to open a stream over HTTP."""
    bare = task_id.removeprefix("task_")
    return [
        (f"/tasks/{task_id}/events", SSE),
        (f"/shannon/api/v1/stream/sse?workflow_id={task_id}", SSE),
        (f"/nanonets/v1/tasks/{bare}/result", JSON),
        ("/events", SSE),
        ("/events?follow=true", "application/x-ndjson"),
    ]


async def few(api: Api) -> Principal:
    """Whose token may have two streams, and whose task they are of."""
    await api.rooms.tokens.add("tt_few", DEV, SCOPES)
    return await api.rooms.bearers.authenticate("tt_few")


async def test_a_token_has_so_many_streams_and_is_told_so_in_every_dialects_words(nats_address: NatsAddress):
    async with running(nats_address, http=FEWS) as api:
        task_id, who = await api.begin(), await few(api)
        mine = [await opened(api, f"/tasks/{task_id}/events", SSE, api.token) for _ in range(4)]
        hers = [await opened(api, path, accept) for path, accept in paths(task_id)[:2]]
        assert [wire.status for wire in (*mine, *hers)] == [200] * 6
        for path, accept in paths(task_id):
            headers = {"Accept": accept, "Authorization": "Bearer tt_few"}
            said = refusal(await api.client.get(path, headers=headers), 429)
            assert said == "too_many_streams" or "at most 2 streams" in said, path
        url = f"{api.url.replace('http', 'ws')}/shannon/api/v1/stream/ws?workflow_id={task_id}"
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url, additional_headers={"X-API-Key": "tt_few"}):
                raise AssertionError
        assert (refused.value.response.status_code, refused.value.response.headers["Retry-After"]) == (429, "5")
        hers[0].reset()
        await until(lambda: api.rooms.streams.open_of(who) == 1)
        async with connect(url, additional_headers={"X-API-Key": "tt_few"}) as client:
            await client.recv()
            assert api.rooms.streams.open_of(who) == 2
        await until(lambda: api.rooms.streams.open_of(who) == 1)
        for wire in (*mine, *hers):
            wire.writer.transport.abort()
        await until(lambda: not api.rooms.streams.readers)


async def leaves(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    await wire.close()


async def breaks_off(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    wire.reset()


async def ends(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    await api.client.post(f"/tasks/{task_id}/cancel")
    assert (await wire.rest())[1]


async def is_revoked(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    await api.rooms.tokens.revoke(token_id)


async def is_drained(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    api.rooms.streams.drain()


async def falls_behind(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    said, text, before = 0, "x" * 100_000, api.metric("streams_cut_total", why="slow")
    while api.metric("streams_cut_total", why="slow") == before:
        assert said < 500, "it takes in more than any kernel should"
        await api.tell(task_id, produce(text, offset=said * len(text)))
        said += 1


async def is_lost(api: Api, task_id: TaskId, wire: Wire, token_id: str) -> None:
    async with api.rooms.tasks.attach(DEV, task_id) as attached:
        attached.make_void("uncertain")


WAYS: Sequence[End] = (leaves, breaks_off, ends, is_revoked, is_lost, falls_behind, is_drained)
"""How a stream comes to its end. (After the last there are no more streams.)"""


async def test_a_stream_that_is_over_counts_no_more_however_it_came_to_that(nats_address: NatsAddress):
    async with running(nats_address, http=FEWS) as api:
        for way in WAYS:
            for which in (0, 1):
                task_id = await api.begin(start_run())
                made = await api.rooms.tokens.add("tt_few", DEV, SCOPES)
                who = await api.rooms.bearers.authenticate("tt_few")
                path, accept = paths(task_id)[which]
                wire = await opened(api, path, accept, room_bytes=NARROW if way is falls_behind else 0)
                if way is not is_drained or which == 0:
                    assert (wire.status, api.rooms.streams.open_of(who)) == (200, 1), way
                await way(api, task_id, wire, made.id)
                await until(lambda who=who: api.rooms.streams.open_of(who) == 0)
                wire.writer.transport.abort()
                await api.rooms.tokens.revoke(made.id)


async def test_a_stream_that_can_not_be_read_counts_no_more(nats_address: NatsAddress):
    async with running(nats_address, http=FEWS) as api:
        task_id = await api.begin(start_run(), produce("x" * 100_000), complete(result="y" * 300_000))
        who = await few(api)
        blobs = api.rooms.tasks.log.blobs
        assert isinstance(blobs, JetStreamBlobs)
        await blobs.purge(f"$O.{BUCKET}.>")
        path, accept = paths(task_id)[2]
        wire = await opened(api, path, accept)
        assert wire.status == 200
        assert not (await wire.rest())[1]
        assert api.metric("streams_cut_total", why="unreadable") == 1
        await until(lambda: api.rooms.streams.open_of(who) == 0)
        wire.writer.transport.abort()
