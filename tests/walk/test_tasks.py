"""The door to the log, on both logs: one read for all who attach, one winner of all who decide, keys, eviction."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from msgspec.structs import replace

from app import attached as attached_room
from app.attached import RECENT
from app.commands import CancelTask, ReceiveInput, RequestPause, ResumeTask
from app.decide import Rejected
from app.feed import OurWords
from app.keys import hashed_key, keyed_task_id
from app.readers import Paced
from app.tasks import KEY_LIVES, Done, Tasks
from eventstore.events import Owner, Record, TaskCancelled, TaskCreated, TaskFact, TaskId
from eventstore.log import EventLog, LogUnavailable, OutcomeUnknown, Recorded
from eventstore.memory import MemoryLog
from projections.task import Task
from tests.lifecycle.commands import complete, create, produce, request_input, start_run
from tests.log.logs import ANN, SOON_S, grow, new_task, until
from tests.walk.lives import CAUSE, Reading, Received, frames_of, read_once, read_whole, room


class CountingLog(MemoryLog):
    """The log in memory, which counts the questions that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        self.reads += 1
        return await super().read(owner, task_id, after=after, limit=limit, max_bytes=max_bytes)

    async def last(self, owner: Owner, task_id: TaskId) -> int:
        self.reads += 1
        return await super().last(owner, task_id)

    async def latest(self, owner: Owner, task_id: TaskId) -> Recorded | None:
        self.reads += 1
        return await super().latest(owner, task_id)


class FarLog(MemoryLog):
    """The log in memory, whose answers are a while on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        self.reads += 1
        found = await super().read(owner, task_id, after=after, limit=limit, max_bytes=max_bytes)
        await asyncio.sleep(0.01)
        return found

    async def last(self, owner: Owner, task_id: TaskId) -> int:
        found = await super().last(owner, task_id)
        await asyncio.sleep(0.01)
        return found


async def begun(tasks: Tasks, *, run: bool = False) -> TaskId:
    """A new task; running, if so wished."""
    done = await tasks.create(ANN, create(), CAUSE)
    assert isinstance(done, Done)
    if run:
        await tasks.execute(ANN, done.task.task_id, start_run(), CAUSE)
    return done.task.task_id


async def seen(tasks: Tasks, task_id: TaskId) -> Task:
    """The task as a poll gets it."""
    attached, _ = await tasks.get(ANN, task_id)
    assert attached is not None
    return attached.task


async def test_all_who_attach_at_once_share_one_read():
    log = CountingLog()
    task_id = new_task()
    await grow(log, task_id, 10)
    tasks = await room(log)
    polled = await asyncio.gather(*[seen(tasks, task_id) for _ in range(50)])
    assert {task.version for task in polled} == {10}
    assert log.reads == 2  # what is last, and what there is up to it
    await tasks.close()
    await log.close()


async def test_a_new_task_is_made_without_a_read():
    log = CountingLog()
    tasks = await room(log)
    task_id = await begun(tasks)
    assert (await seen(tasks, task_id)).status == "pending"
    assert log.reads == 0
    await tasks.close()
    await log.close()


async def test_of_two_who_end_a_task_at_once_one_is_told_that_it_came_too_late(tasks: Tasks, other: Tasks):
    for _ in range(20):
        task_id = await begun(tasks, run=True)
        async with other.attach(ANN, task_id):
            outcomes = await asyncio.gather(
                tasks.execute(ANN, task_id, complete(), CAUSE),
                other.execute(ANN, task_id, CancelTask(by="ann"), CAUSE),
            )
        (winner,) = [one for one in outcomes if isinstance(one, Done)]
        (loser,) = [one for one in outcomes if isinstance(one, Rejected)]
        assert loser.reason == "ended"
        assert winner.task.ended
        assert await seen(tasks, task_id) == await seen(other, task_id) == winner.task


async def test_many_writers_in_two_rooms_lose_nothing(tasks: Tasks, other: Tasks):
    task_id = await begun(tasks, run=True)
    saying = [
        (tasks, other)[n % 2].execute(ANN, task_id, ReceiveInput(text=f"{n}", key=f"k{n}"), CAUSE) for n in range(40)
    ]
    said = await asyncio.gather(*saying)
    assert all(isinstance(one, Done) and one.recorded is not None for one in said)
    task = await seen(other, task_id)  # its polls are strict: they have heard of what either room was told
    assert (task.version, task.inbox) == (42, 40)
    assert len(await frames_of(tasks.log, task_id)) == 42


async def test_what_the_other_process_was_told_is_what_this_one_decides_on(tasks: Tasks, other: Tasks):
    """A refusal is an answer too: it must not rest on what this process has not heard yet."""
    for _ in range(50):
        task_id = await begun(tasks, run=True)
        await seen(other, task_id)
        assert isinstance(await tasks.execute(ANN, task_id, request_input(), CAUSE), Done)
        assert isinstance(await other.execute(ANN, task_id, ReceiveInput(text="blue"), CAUSE), Done)
        again = await tasks.execute(ANN, task_id, start_run(2), CAUSE)
        assert isinstance(again, Done), again


async def test_a_wish_that_another_process_undid_is_granted_anew(tasks: Tasks, other: Tasks):
    for _ in range(50):
        task_id = await begun(tasks)
        await tasks.execute(ANN, task_id, RequestPause(), CAUSE)
        await seen(other, task_id)
        await tasks.execute(ANN, task_id, ResumeTask(), CAUSE)
        paused = await other.execute(ANN, task_id, RequestPause(), CAUSE)
        assert isinstance(paused, Done)
        assert paused.recorded is not None


async def test_a_caller_that_goes_away_takes_nothing_along(tasks: Tasks):
    for begins in range(4):
        task_id = await begun(tasks)
        async with tasks.attach(ANN, task_id) as attached:
            calling = asyncio.ensure_future(tasks.execute(ANN, task_id, CancelTask(by="ann"), CAUSE))
            for _ in range(begins):
                await asyncio.sleep(0)
            calling.cancel()
            await asyncio.wait([calling])
            if begins:
                assert await attached.until(lambda task: task.ended, SOON_S)
    assert tasks.attached_count == 4


async def test_closing_lets_what_is_in_flight_land(log: EventLog):
    tasks = await room(log)
    task_id = await begun(tasks)
    calling = asyncio.ensure_future(tasks.execute(ANN, task_id, CancelTask(by="ann"), CAUSE))
    await asyncio.sleep(0)
    await tasks.close()
    assert isinstance(await calling, Done)
    assert (await log.read(ANN, task_id))[-1].record.fact == TaskCancelled(by="ann")


async def test_one_key_from_twenty_callers_is_one_task(tasks: Tasks, other: Tasks):
    outcomes = await asyncio.gather(
        *[(tasks, other)[n % 2].create(ANN, create(), CAUSE, key="k") for n in range(20)],
    )
    done = [one for one in outcomes if isinstance(one, Done)]
    assert len(done) == 20
    assert len({one.task.task_id for one in done}) == 1
    assert sum(one.recorded is not None for one in done) == 1
    refused = await other.create(ANN, create(fingerprint="f2"), CAUSE, key="k")
    assert isinstance(refused, Rejected)
    assert refused.reason == "key_reused"


async def test_twenty_callers_with_one_key_and_two_wishes_get_one_task(tasks: Tasks, other: Tasks):
    outcomes = await asyncio.gather(
        *[(tasks, other)[n % 2].create(ANN, create(fingerprint=f"f{n % 2}"), CAUSE, key="k") for n in range(20)],
    )
    assert sum(isinstance(one, Done) for one in outcomes) == 10
    assert {one.reason for one in outcomes if isinstance(one, Rejected)} == {"key_reused"}


async def ended_long_ago(log: EventLog, key: str, ago: timedelta, generation: int) -> TaskId:
    """A task that was made by this key, and ended so long ago."""
    task_id = keyed_task_id(ANN, "native", key, generation)
    at = datetime.now(UTC) - ago
    facts: list[TaskFact] = [TaskCreated(agent="simulator", fingerprint="f1"), TaskCancelled(by="ann")]
    last: Recorded | None = None
    for version, fact in enumerate(facts, 1):
        record = Record(
            record_id=uuid4().hex,
            version=version,
            at=at,
            actor="test",
            causation_id=None,
            correlation_id=None,
            previous=last.sha256 if last else "",
            key=hashed_key("create", key) if version == 1 else None,
            fact=fact,
        )
        last = await log.append(ANN, task_id, record, last.sequence if last else 0)
    return task_id


async def test_a_key_whose_task_ended_long_ago_makes_another(log: EventLog, tasks: Tasks, other: Tasks):
    old = KEY_LIVES + timedelta(minutes=1)
    first = await ended_long_ago(log, "k", old, 0)
    second = await ended_long_ago(log, "k", old, 1)
    outcomes = await asyncio.gather(*[one.create(ANN, create(), CAUSE, key="k") for one in (tasks, other, tasks)])
    (third,) = {one.task.task_id for one in outcomes if isinstance(one, Done)}
    assert third == keyed_task_id(ANN, "native", "k", 2)
    assert third not in (first, second)
    assert isinstance(await tasks.create(ANN, create(fingerprint="f2"), CAUSE, key="k"), Rejected)


async def test_a_key_whose_task_ended_today_is_still_that_task(log: EventLog, tasks: Tasks):
    first = await ended_long_ago(log, "k", KEY_LIVES - timedelta(minutes=1), 0)
    done = await tasks.create(ANN, create(), CAUSE, key="k")
    assert isinstance(done, Done)
    assert (done.task.task_id, done.recorded) == (first, None)


async def test_who_holds_on_to_a_task_keeps_it_and_the_others_leave_and_come_back_the_same(log: EventLog):
    tasks = await room(log, max_attached=3)
    followed, pinned, idle = [await begun(tasks, run=True) for _ in range(3)]
    before = await seen(tasks, idle)
    reading = asyncio.ensure_future(read_whole(tasks, followed, []))
    async with tasks.attach(ANN, followed) as read:
        await until(lambda: len(read.readers) == 1)
    async with tasks.attach(ANN, pinned) as held:
        for _ in range(20):
            await begun(tasks)
        assert tasks.attached_count <= 3
        async with tasks.attach(ANN, followed) as again:
            assert again is read
        async with tasks.attach(ANN, pinned) as again:
            assert again is held
        assert await seen(tasks, idle) == before
    await tasks.execute(ANN, followed, CancelTask(by="ann"), CAUSE)
    assert (await reading).frames == await frames_of(log, followed)
    await tasks.close()


async def test_a_task_that_nobody_made_leaves_no_trace(tasks: Tasks):
    assert await tasks.get(ANN, new_task()) == (None, None)
    refused = await tasks.execute(ANN, new_task(), CancelTask(by="ann"), CAUSE)
    assert isinstance(refused, Rejected)
    assert refused.reason == "not_found"
    assert tasks.attached_count == 0


async def test_who_waits_for_a_change_goes_away_without_a_trace(tasks: Tasks):
    task_id = await begun(tasks)
    async with tasks.attach(ANN, task_id) as attached:
        waiting = [asyncio.ensure_future(attached.until(lambda task: task.ended, SOON_S)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert not await attached.until(lambda task: task.ended, 0.01)
        await tasks.execute(ANN, task_id, CancelTask(by="ann"), CAUSE)
        assert await asyncio.gather(*waiting[1:]) == [True, True]
    assert attached.idle


async def test_a_reader_that_falls_behind_is_cut_and_no_writer_waits_for_it(tasks: Tasks):
    task_id = await begun(tasks, run=True)
    async with tasks.attach(ANN, task_id) as attached:
        slow, quick = Paced(2_000), Paced(1_000_000)
        for reader in (slow, quick):
            attached.join(reader, OurWords.words)
        heard: list[bytes] = []
        for n in range(20):
            await tasks.execute(ANN, task_id, produce("a" * 100, offset=100 * n), CAUSE)
        assert await slow.over == "slow"
        while len(heard) < 20:
            heard += await quick.take()
        assert heard == (await frames_of(tasks.log, task_id))[-20:]
        for reader in (slow, quick):
            attached.leave(reader, OurWords.words)


async def test_what_happens_while_a_task_is_being_read_is_not_lost():
    log = FarLog()
    tasks, other = await room(log), await room(log)
    for later in range(12):
        task_id = await begun(tasks, run=True)
        polling = asyncio.ensure_future(seen(other, task_id))
        await asyncio.sleep(0.002 * later)
        await tasks.execute(ANN, task_id, complete(), CAUSE)
        await polling
        async with other.attach(ANN, task_id) as attached:
            assert await attached.until(lambda task: task.ended, 2), later
    for one in (tasks, other, log):
        await one.close()


async def test_a_long_task_is_resumed_at_any_of_its_facts(tasks: Tasks):
    task_id = new_task()
    records = await grow(tasks.log, task_id, 2 * RECENT)
    async with tasks.attach(ANN, task_id) as attached:
        attached.apply((await grow(tasks.log, task_id, 1, records[-1]))[0])
        expected = [recorded.stored for recorded in await tasks.log.read(ANN, task_id)]
        for at in range(0, len(records), 5):
            found: list[bytes] = []
            async for page in tasks.catch_up(attached, after=records[at].sequence):
                assert page is not None
                found += [recorded.stored for recorded in page]
            assert found == expected[at + 1 :]


@pytest.mark.parametrize("where", ["memory"], indirect=True)
async def test_a_task_of_many_facts_is_read_page_by_page(log: EventLog, tasks: Tasks):
    task_id = new_task()
    await grow(log, task_id, 700)
    async with tasks.attach(ANN, task_id) as attached:
        sizes = [len(page or []) async for page in tasks.catch_up(attached, after=0)]
    assert (sum(sizes), len(sizes) > 2) == (700, True)


async def test_those_who_come_together_to_a_long_history_share_its_reading():
    log = FarLog()
    task_id = new_task()
    await grow(log, task_id, 700)
    tasks = await room(log)
    async with tasks.attach(ANN, task_id):
        before = log.reads
        reading = [asyncio.ensure_future(read_once(tasks, task_id, Received(), Reading(0, 700))) for _ in range(50)]
        reading[3].cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        assert log.reads - before <= 4  # three pages; those who are through with one sooner ask for the next alone
    await tasks.close()
    await log.close()


class LostLog(MemoryLog):
    """The log in memory; once it is `lost` it takes what it is given, and then answers no question more."""

    lost: Callable[[], None] | None = None
    silent = False

    async def append(self, owner: Owner, task_id: TaskId, record: Record, expected: int) -> Recorded:
        recorded = await super().append(owner, task_id, record, expected)
        if self.lost is not None:
            self.lost()
            self.silent = True
        return recorded

    async def last(self, owner: Owner, task_id: TaskId) -> int:
        if self.silent:
            raise LogUnavailable("no answer")
        return await super().last(owner, task_id)


@pytest.mark.parametrize("waits", [False, True])
async def test_of_what_is_in_the_log_it_is_never_said_that_nothing_was_done(waits: bool):
    log = LostLog()
    tasks = await room(log)
    task_id = await begun(tasks)
    attached = tasks.at_hand(ANN, task_id)
    assert attached is not None

    def forget() -> None:
        """What we hold is of another life of the log, so what was written does not follow on it."""
        attached.task = replace(attached.task, sequence=0, version=7)

    log.lost = forget
    if waits:  # for its turn: the same the long way
        await attached.lock.acquire()
    asking = asyncio.ensure_future(tasks.execute(ANN, task_id, ReceiveInput(text="more"), CAUSE))
    await asyncio.sleep(0)
    if waits:
        attached.lock.release()
    with pytest.raises(OutcomeUnknown):
        await asking
    assert len(log.arrivals) == 2
    assert (attached.pins, attached.lock.locked()) == (0, False)
    await tasks.close()


async def test_a_fact_that_we_fail_to_fold_keeps_nobody_waiting_and_no_task_locked(monkeypatch: pytest.MonkeyPatch):
    tasks = await room(MemoryLog())
    task_id = await begun(tasks)
    held = tasks.at_hand(ANN, task_id)
    assert held is not None

    def fail(task: Task, recorded: Recorded) -> Task:
        raise ValueError(recorded.task_id, task.task_id)

    with monkeypatch.context() as patch:
        patch.setattr(attached_room, "evolve", fail)
        with pytest.raises(OutcomeUnknown):
            await tasks.execute(ANN, task_id, ReceiveInput(text="more"), CAUSE)
    assert (held.void, held.pins, held.lock.locked()) == (True, 0, False)
    assert (await seen(tasks, task_id)).version == 2
    assert isinstance(await tasks.execute(ANN, task_id, ReceiveInput(text="more"), CAUSE), Done)
    await tasks.close()
