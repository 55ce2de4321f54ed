"""The cold poll: a long history is begun where the views are; whatever they say, the answer is what the log says."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update

from app import history, views
from app.commands import CancelTask, ReceiveInput
from app.metrics import Metrics
from app.tasks import Done, Tasks
from app.views import Lists
from eventstore.connection import NatsAddress
from eventstore.events import Owner, TaskId
from eventstore.log import Arrival, EventLog, Recorded, task_subject
from eventstore.memory import MemoryLog
from projections.database import Database
from projections.projector import Projector
from projections.schema import FOLD_VERSION, GENERATIONS
from projections.task import INITIAL, Task, evolve
from tests.lifecycle.commands import create
from tests.log.logs import ANN, SOON_S, created, grow, jetstream, new_task, record_of
from tests.projections.databases import Cluster
from tests.projections.lives import carry, numbered
from tests.projections.test_projector import FACTS
from tests.walk.lives import CAUSE

LONG = 3 * history.MANY_RECORDS


class Metered(MemoryLog):
    """The log in memory, which counts the records that it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.records_read = 0

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        found = await super().read(owner, task_id, after=after, limit=limit, max_bytes=max_bytes)
        self.records_read += len(found)
        return found


@asynccontextmanager
async def opened(log: EventLog, views_url: str, *, strict_reads: bool = False) -> AsyncGenerator[Tasks]:
    """An API process's room, which has attended to nothing yet."""
    lists = Lists(views_url)
    tasks = await Tasks.open(log, Metrics(), lists.task, strict_reads=strict_reads)
    try:
        yield tasks
    finally:
        await tasks.close()
        await lists.close()


async def polled(log: EventLog, views_url: str, task_id: TaskId) -> Task:
    """What somebody gets who asks a process that has just begun; INITIAL: there is no such task."""
    async with opened(log, views_url) as tasks:
        attached, age_s = await tasks.get(ANN, task_id)
        assert age_s is None
        return INITIAL if attached is None else attached.task


async def told_by(log: EventLog, task_id: TaskId) -> Task:
    """What the log says."""
    return reduce(evolve, await log.read(ANN, task_id), INITIAL)


async def copied(records: list[Recorded], log: MemoryLog) -> None:
    """The same bytes, one after the other, in another log."""
    for one in records:
        await log.append(one.owner, one.task_id, one.record, await log.last(one.owner, one.task_id))


async def test_a_long_history_is_begun_where_the_views_are(database: Database, views_url: str) -> None:
    log, task_id = Metered(), new_task()
    grown = await grow(log, task_id, LONG)
    await carry(log, database)
    log.records_read = 0
    assert await polled(log, views_url, task_id) == reduce(evolve, grown, INITIAL)
    assert log.records_read == 0  # the leader's last record is the one that the views had last
    await grow(log, task_id, 3, grown[-1])
    assert await polled(log, views_url, task_id) == await told_by(log, task_id)
    assert log.records_read == 1 + 3 + LONG + 3  # (the last ones by the test itself)


async def test_whoever_follows_a_task_begun_from_the_views_gets_all_of_it(database: Database, views_url: str) -> None:
    log, task_id = Metered(), new_task()
    grown = await grow(log, task_id, LONG)
    await carry(log, database)
    grown += await grow(log, task_id, 2, grown[-1])
    async with opened(log, views_url) as tasks, tasks.attach(ANN, task_id) as attached:
        assert [one.record.version for one in attached.recent] == [LONG + 1, LONG + 2]
        for after in (0, LONG - 1, LONG, LONG + 1):
            got: list[Recorded] = []
            async for page in tasks.catch_up(attached, after=after):
                got += page or []
            assert [one.stored for one in got] == [one.stored for one in grown if one.sequence > after]


async def test_a_cold_poll_is_never_stale_while_the_projector_stands_still(
    nats_address: NatsAddress, database: Database, views_url: str
) -> None:
    async with jetstream(nats_address) as log, jetstream(nats_address) as elsewhere:
        task_id = new_task()
        last = (await grow(log, task_id, LONG))[-1]
        await carry(log, database)
        begun = Lists(views_url)
        for _ in range(20):
            (last,) = await grow(log, task_id, 1, last)
            behind = await begun.task(ANN, task_id)
            assert behind is not None
            assert behind.version == LONG
            # Acknowledged is seen, by whoever asks next, in whichever process.
            assert await polled(elsewhere, views_url, task_id) == await told_by(log, task_id)
        await begun.close()


async def test_what_is_decided_on_a_task_from_the_views_rests_on_all_of_its_history(
    nats_address: NatsAddress, database: Database, views_url: str
) -> None:
    async with jetstream(nats_address) as log:
        async with opened(log, views_url) as tasks:
            done = await tasks.create(ANN, create(key="k"), CAUSE, key="once")
            assert isinstance(done, Done)
            task_id = done.task.task_id
            for n in range(LONG):
                await tasks.execute(ANN, task_id, ReceiveInput(text=f"{n}", key=f"k{n}"), CAUSE)
        await carry(log, database)
        async with opened(log, views_url, strict_reads=True) as tasks:
            again = await tasks.execute(ANN, task_id, ReceiveInput(text="0", key="k0"), CAUSE)
            created_again = await tasks.create(ANN, create(key="k"), CAUSE, key="once")
            for outcome in (again, created_again):
                assert isinstance(outcome, Done)
                assert (outcome.recorded, outcome.task.version) == (None, LONG + 1)
            ended = await tasks.execute(ANN, task_id, CancelTask(by="ann"), CAUSE)
            assert isinstance(ended, Done)
            assert ended.recorded is not None
            assert ended.recorded.record.version == LONG + 2
        assert await polled(log, views_url, task_id) == await told_by(log, task_id)


async def test_views_that_are_ahead_of_a_log_that_went_back_are_not_believed(
    database: Database, views_url: str
) -> None:
    log, older, task_id = MemoryLog(), MemoryLog(), new_task()
    grown = await grow(log, task_id, LONG)
    await carry(log, database)
    await copied(grown[:-5], older)
    assert (await polled(older, views_url, task_id)).version == LONG - 5
    # It goes on otherwise: first as far as the views are, then farther.
    for more in (5, 5):
        last = (await older.read(ANN, task_id))[-1]
        await grow(older, task_id, more, last)
        assert await polled(older, views_url, task_id) == await told_by(older, task_id)


async def test_views_that_this_release_did_not_fold_are_not_believed(database: Database, views_url: str) -> None:
    log, task_id = MemoryLog(), new_task()
    await grow(log, task_id, LONG)
    await carry(log, database)
    lists = Lists(views_url)
    assert await lists.task(ANN, task_id) is not None
    async with database.writing() as connection:
        await connection.execute(update(GENERATIONS).values(fold=FOLD_VERSION + 1))
    assert await lists.task(ANN, task_id) is None
    await lists.close()
    assert await polled(log, views_url, task_id) == await told_by(log, task_id)


async def test_a_task_of_which_the_views_left_something_out_is_read_from_the_log(
    database: Database, views_url: str
) -> None:
    """A record that only another release can read: what was folded without it is not what the log says."""
    log, task_id = MemoryLog(), new_task()
    grown = await grow(log, task_id, LONG)
    log.arrivals[9] = Arrival(10, task_subject(ANN, task_id), b"no record")
    await carry(log, database)
    lists = Lists(views_url)
    assert await lists.task(ANN, task_id) is None
    await lists.close()
    assert await polled(log, views_url, task_id) == reduce(evolve, grown, INITIAL)


async def test_a_task_that_the_views_do_not_have_is_read_from_the_log(database: Database, views_url: str) -> None:
    log, task_id = MemoryLog(), new_task()
    assert await polled(log, views_url, task_id) == INITIAL
    await carry(log, database)
    await grow(log, task_id, LONG)
    assert await polled(log, views_url, task_id) == await told_by(log, task_id)


async def test_views_that_are_away_delay_nobody(tmp_path: Path) -> None:
    log, task_id = MemoryLog(), new_task()
    await grow(log, task_id, LONG)
    (tmp_path / "broken").write_bytes(b"no database" * 1000)
    for url in (f"sqlite:///{tmp_path / 'none yet'}", f"sqlite:///{tmp_path / 'broken'}", "postgresql://127.0.0.1:9/x"):
        assert await polled(log, url, task_id) == await told_by(log, task_id)


async def test_views_that_are_slow_are_not_waited_for(postgresql: Cluster) -> None:
    url, log = postgresql.new_database(), MemoryLog()
    task_ids = [new_task() for _ in range(50)]
    for task_id in task_ids:
        await grow(log, task_id, LONG)
    database = Database.open(url)
    await carry(log, database)
    lists = Lists(url)
    tasks = await Tasks.open(log, Metrics(), lists.task)
    async with database.writing() as connection:
        await connection.execute(text("LOCK TABLE views_served IN ACCESS EXCLUSIVE MODE"))
        # One after the other: they would take half a minute if each waited as long as the first.
        async with asyncio.timeout(SOON_S / 4):
            for task_id in task_ids:
                attached, _ = await tasks.get(ANN, task_id)
                assert attached is not None
                assert attached.task == await told_by(log, task_id)
    await tasks.close()
    await lists.close()
    await database.close()


WRITE = st.tuples(st.just("write"), st.integers(0, 2), st.integers(0, len(FACTS) - 1))
CARRY = st.tuples(st.just("carry"), st.integers(1, 5), st.integers(1, 3))
POLL = st.tuples(st.just("poll"), st.integers(0, 2), st.just(0))
BACK = st.tuples(st.just("back"), st.integers(1, 9), st.just(0))
MOVES = st.lists(st.one_of(WRITE, WRITE, WRITE, CARRY, POLL, BACK), max_size=40)


class Play:
    """A log that grows and goes back, a projector that stands still most of the time, and somebody who asks."""

    def __init__(self, database: Database, lists: Lists) -> None:
        self._log = MemoryLog()
        self._written: list[Recorded] = []
        self._database = database
        self._lists = lists

    async def move(self, what: str, first: int, second: int) -> None:
        match what:
            case "write":
                history = await self._log.read(ANN, numbered(first))
                last = history[-1] if history else None
                record = record_of(FACTS[second] if last else created(), last)
                self._written.append(await self._log.append(ANN, numbered(first), record, last.sequence if last else 0))
            case "carry":
                projector = Projector(self._log, self._database, batch=first)
                for _ in range(second):
                    await projector.run_once()
                await projector.close()
            case "back":
                await self._log.close()
                self._log = MemoryLog()
                del self._written[-first:]
                await copied(self._written, self._log)
            case _:
                await self.poll(first)

    async def poll(self, number: int) -> None:
        tasks = await Tasks.open(self._log, Metrics(), self._lists.task)
        async with tasks.attach(ANN, numbered(number)) as attached:
            assert attached.task == await told_by(self._log, numbered(number))
        await tasks.close()

    async def close(self) -> None:
        for number in range(3):
            await self.poll(number)
        await self._log.close()


async def play(url: str, moves: list[tuple[str, int, int]]) -> None:
    database, lists = Database.open(url), Lists(url)
    try:
        await carry(MemoryLog(), database)
        one = Play(database, lists)
        for move in moves:
            await one.move(*move)
        await one.close()
    finally:
        await lists.close()
        await database.close()


@pytest.mark.timeout(300)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_wherever_projector_and_log_stand_a_cold_poll_is_a_fold_of_the_log(
    views_url: str, monkeypatch: pytest.MonkeyPatch, moves: list[tuple[str, int, int]]
) -> None:
    monkeypatch.setattr(history, "MANY_RECORDS", 1)
    monkeypatch.setattr(views, "REST_S", 0.0)
    asyncio.run(play(url=views_url, moves=moves))
