"""Law 5 in Shannon's words: live, replay and pages tell the same events, and a reader that was cut, wherever it was,
has each of them once, and is told of the end."""

import asyncio
from typing import Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects.shannon_events import events_of
from app.dialects.shannon_frames import Event, sse_frame, wanted
from app.dialects.shannon_stream import SSE, Position, ShannonWords, position_of
from app.tasks import Tasks
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.memory import MemoryLog
from tests.api import running
from tests.log.logs import ANN, SOON_S, new_task
from tests.walk.lives import (
    Reading,
    Received,
    live,
    lives,
    read_once,
    read_whole,
    readers,
    room,
)
from tests.walk.test_law_five import evicting, rooms

FILTERS = [
    frozenset[str](),
    frozenset({"thread.message.delta", "TOOL_OBSERVATION"}),
    frozenset({"workflow.paused", "WORKFLOW_PAUSED", "error"}),
    frozenset({"NOTHING_OF_THE_SORT"}),
]
types = st.sampled_from(FILTERS)


class Telling:
    """What tells a reader of one filter, from an event's id or from its `seq`."""

    def __init__(self, types: frozenset[str] = FILTERS[0]) -> None:
        self.types = types

    def __call__(
        self, tasks: Tasks, task_id: TaskId, received: Received, resumes_by: Literal["id", "sequence"]
    ) -> ShannonWords:
        last = received.last_id
        if resumes_by == "sequence" and received.frames and received.frames[-1].endswith(b"}\n\n"):
            seen = msgspec.json.decode(received.frames[-1].partition(b"\ndata: ")[2], type=dict[str, object])
            last = str(seen.get("seq", last))
        position = position_of(last) if last else Position()
        assert position is not None
        return ShannonWords(tasks, task_id, position, self.types, SSE)


async def events(tasks: Tasks, task_id: TaskId) -> list[Event]:
    """What the log holds, in Shannon's words."""
    async with tasks.attach(ANN, task_id) as attached:
        task = attached.task
    return [event for recorded in await tasks.log.read(ANN, task_id) for event in events_of(recorded, task)]


def frames(events: list[Event], types: frozenset[str]) -> list[bytes]:
    """Those that pass this filter, and the end."""
    return [sse_frame(event) for event in events if wanted(event, types) or event.type == "STREAM_END"]


def with_one_end(frames: list[bytes]) -> list[bytes]:
    """A reader that left after the end, and asks again, is told of it again; of nothing else."""
    while frames[-2:-1] == frames[-1:]:
        frames = frames[:-1]
    return frames


async def do_nothing(_: int) -> None:
    await asyncio.sleep(0)


@settings(max_examples=40, deadline=None)
@given(life=lives, all_readings=readers, types=types)
async def test_whatever_is_cut_each_reader_has_each_event_once(
    life: list[int], all_readings: list[list[Reading]], types: frozenset[str]
):
    log = MemoryLog()
    task_id = new_task()
    async with rooms(log) as both, asyncio.timeout(SOON_S):
        reading = [
            asyncio.ensure_future(read_whole(both[n % 2], task_id, readings, Telling(types)))
            for n, readings in enumerate(all_readings)
        ]
        await live(both, task_id, life, evicting(both, 3))
        told = frames(await events(both[0], task_id), types)
        for received in await asyncio.gather(*reading):
            assert with_one_end(received.frames) == told
            assert received.resets == 0
    await log.close()


@settings(max_examples=25, deadline=None)
@given(life=lives)
async def test_whoever_resumes_at_any_event_has_exactly_the_rest(life: list[int]):
    log = MemoryLog()
    tasks, task_id = await room(log, max_attached=1), new_task()
    await live([tasks], task_id, life, do_nothing)
    story = await events(tasks, task_id)
    assert [event.seq for event in story] == list(range(1, len(story) + 1))
    assert len({event.stream_id for event in story}) == len(story)
    whole = frames(story, FILTERS[0])
    for n, event in enumerate(story, 1):
        for by in (event.stream_id, str(event.seq)):
            position = position_of(by)
            assert position is not None
            received = Received()

            def words(tasks: Tasks, task_id: TaskId, *_: object, at: Position = position) -> ShannonWords:
                return ShannonWords(tasks, task_id, at, FILTERS[0], SSE)

            await read_once(tasks, task_id, received, Reading(0, 1_000_000), words)
            assert received.frames == (whole[n:] or whole[-1:]), (n, by)
    await tasks.close()
    await log.close()


LIVES = [[2, 9, 10, 1, 9, 3, 0, 10, 2, 9, 7, 3, 9, 2, 1, 11, 4], [2, 5, 0, 1, 6, 9, 9, 8, 4, 1, 2, 2, 6, 3, 3]]


async def test_pages_tell_what_streams_tell_but_for_pieces_of_text(nats_address: NatsAddress):
    async with running(nats_address) as api:
        await api.rooms.tokens.add("tt_ann", ANN, ("tasks:read",))
        tasks, key = api.rooms.tasks, {"X-API-Key": "tt_ann"}
        for life in LIVES:
            task_id = new_task()
            reading = asyncio.ensure_future(read_whole(tasks, task_id, [], Telling()))
            await live([tasks], task_id, life, do_nothing)
            story = await events(tasks, task_id)
            assert (await reading).frames == frames(story, FILTERS[0])
            said: list[dict[str, object]] = []
            while True:
                query = f"limit=7&offset={len(said)}"
                answer = await api.client.get(f"/shannon/api/v1/tasks/{task_id}/events?{query}", headers=key)
                page = answer.json()["events"]
                assert answer.json()["count"] == len(page)
                said += page
                if not page:
                    break
            assert said == [msgspec.to_builtins(event) for event in story if event.type != "LLM_PARTIAL"]
