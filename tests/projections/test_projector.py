"""The projector: whatever the batches, restarts and replays, the rows are a fold of the log; rebuilds without a gap."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields
from sqlalchemy import update
from sqlalchemy.schema import CreateTable

from eventstore import codec
from eventstore.codec import SESSION_TAGS, TAGS
from eventstore.events import Owner, SessionDeleted, SessionFact, SessionTitled, TaskFact, UnknownFact
from eventstore.log import Arrival, LogIsAnother, OnArrival, OnReset, session_of_subject
from eventstore.memory import MemoryLog, MemoryReplay, MemoryTail
from projections import generations
from projections.database import Database
from projections.generations import Generation
from projections.projector import Progress, Projector
from projections.schema import FOLD_VERSION, GENERATIONS, tables, tasks_table
from projections.session import Session, SessionView, Tally
from projections.task import Halt, StepInHand, Task
from projections.views import Views
from projections.views_errors import Superseded, ViewsUnavailable
from tests.given import (
    answer,
    cancelled,
    completed,
    failed,
    input_requested,
    partial,
    paused,
    queued,
    resumed,
    run_failed,
    started,
    step_finished,
    step_started,
    tool_used,
)
from tests.log.logs import SOON_S, until
from tests.projections.lives import ANN, BOB, Scribe, born, carry, fold_of, folded, in_step, numbered, sessions_in_step

FACTS: list[TaskFact | UnknownFact] = [
    queued(),
    started(),
    step_started(),
    partial("text\0"),
    step_finished(message="said"),
    tool_used(output={"big": 2**60, "text": "\0"}),
    input_requested(),
    answer(),
    paused(),
    resumed(),
    run_failed(),
    completed(),
    failed(),
    cancelled(),
    UnknownFact(tag="task.from_the_future", fields={"x": 1}),
]
SESSION_FACTS: list[SessionFact | UnknownFact] = [
    SessionTitled(title="Trip"),
    SessionTitled(title="Rome\0"),
    SessionDeleted(),
    SessionDeleted(session_id="s 0"),
    UnknownFact(tag="session.shared", fields={}),
]
WRITE = st.tuples(st.just("write"), st.integers(0, 5), st.integers(0, len(FACTS) - 1))
CARRY = st.tuples(st.just("carry"), st.integers(1, 9), st.integers(0, 2))
REPLAY = st.tuples(st.just("replay"), st.integers(0, 40), st.integers(1, 40))
SESSION = st.tuples(st.just("session"), st.integers(0, 5), st.integers(0, len(SESSION_FACTS) - 1))
OTHER = st.tuples(st.sampled_from(["restart", "elsewhere", "other_subject"]), st.just(0), st.just(0))
MOVES = st.lists(st.one_of(WRITE, WRITE, WRITE, SESSION, CARRY, REPLAY, OTHER), max_size=60)


JUNK = Arrival(0, "sessions.ann.s1", b"{}")
"""No record of ours: somebody else wrote it."""


class Play:
    """A log that grows, and projectors that carry it in pieces, die, and are told the same again."""

    def __init__(self, database: Database, generation: Generation) -> None:
        self.log = MemoryLog()
        self._database = database
        self._generation = generation
        self._scribe = Scribe(self.log)
        self._begun: set[int] = set()
        self._projector = Projector(self.log, database)

    async def move(self, what: str, first: int, second: int) -> None:
        match what:
            case "write":
                owner = (ANN, BOB)[first % 2]
                session_id = (None, "s 0", "s 0", "s2")[first % 4]
                new = born(f"Task {first}", input="\0", session_id=session_id)
                # More tasks than are written to again: sessions grow, and begin anew after a deletion.
                number = first if second % 3 else first + 6 * len(self.log.arrivals)
                fact = FACTS[second] if number in self._begun else new
                self._begun.add(number)
                await self._scribe.write(owner, numbered(number), fact)
            case "session":
                await self._scribe.session((ANN, BOB)[first % 2], ("s 0", "s2", "s3")[first % 3], SESSION_FACTS[second])
            case "carry":
                await self._projector.close()
                self._projector = Projector(self.log, self._database, batch=first)
                for _ in range(second):
                    await self._projector.run_once()
            case "replay":
                await self._replay(first, second)
            case "restart":
                await self._projector.close()
                self._projector = Projector(self.log, self._database)
            case "elsewhere":
                await carry(self.log, self._database)
            case _:
                self.log.arrivals.append(Arrival(len(self.log.arrivals) + 1, JUNK.subject, JUNK.stored))

    async def _replay(self, back: int, length: int) -> None:
        """A deposed projector comes late with a batch that was taken in before, or with a part of it."""
        checkpoint = (await self._generation.checkpoint()).sequence
        after = max(0, checkpoint - back)
        upto = min(after + length, len(self.log.arrivals))
        batch = [one for one in self._scribe.written if after < one.sequence <= upto]
        said = [one for one in self.log.arrivals[after:upto] if one.stored != JUNK.stored]
        sessions = [codec.session_recorded(one) for one in said if session_of_subject(one.subject)]
        if upto > after:
            reached = await self._generation.apply(batch, sessions=sessions, after=after, upto=upto)
            assert reached == max(checkpoint, upto)

    async def close(self) -> None:
        await self._projector.close()
        await self.log.close()


async def play(url: str, moves: list[tuple[str, int, int]]) -> None:
    database = Database.open(url)
    try:
        await (await Generation.current(database)).void()
        one = Play(database, await Generation.current(database))
        for move in moves:
            await one.move(*move)
        await carry(one.log, database)
        await in_step(database, fold_of(one.log), ANN, BOB)
        readable = [arrival for arrival in one.log.arrivals if arrival.stored != JUNK.stored]
        await sessions_in_step(database, readable, ANN, BOB)
        await one.close()
    finally:
        await database.close()


@pytest.mark.timeout(300)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_whatever_the_batches_the_rows_are_a_fold_of_the_log(views_url: str, moves: list[tuple[str, int, int]]) -> None:
    asyncio.run(play(views_url, moves))


@pytest.fixture
async def log() -> AsyncGenerator[MemoryLog]:
    log = MemoryLog()
    yield log
    await log.close()


async def test_it_is_carried_in_batches(log: MemoryLog, database: Database) -> None:
    scribe = Scribe(log)
    for _ in range(40):
        await scribe.task(born(), started(), completed())
    projector = Projector(log, database, batch=5)
    assert await projector.run_once() == 5
    assert await projector.run_to_end() == 115
    await projector.close()
    await in_step(database, fold_of(log))


async def test_progress_is_told(log: MemoryLog, database: Database) -> None:
    scribe = Scribe(log)
    for _ in range(10):
        await scribe.task(born(), completed())
    told: list[Progress] = []
    projector = Projector(log, database, on_progress=told.append, batch=5)
    assert await projector.run_to_end() == 20
    await projector.close()
    assert [(one.position, one.records, one.share) for one in told] == [(n, n, n / 20) for n in (5, 10, 15, 20)]
    assert all(one.rate > 0 for one in told)


async def test_it_carries_what_comes_until_it_leads_no_more(log: MemoryLog, database: Database) -> None:
    leads = True
    scribe = Scribe(log)
    projector = Projector(log, database, leading=lambda: leads)
    running = asyncio.ensure_future(projector.run())
    await scribe.task(born("a"), started())
    await until(lambda: projector.position == 2)
    await scribe.task(born("b"))
    await until(lambda: projector.position == 3)
    leads = False
    async with asyncio.timeout(SOON_S):
        await running
    await scribe.task(born("c"))
    assert await projector.run_to_end() == 0
    assert await Views(database).checkpoint() == 3
    leads = True
    assert await projector.run_to_end() == 1
    await projector.close()


async def test_a_record_that_nobody_can_read_is_passed_over(log: MemoryLog, database: Database) -> None:
    scribe = Scribe(log)
    task_id = await scribe.task(born("a"))
    log.arrivals.append(Arrival(2, f"tasks.0.ann.{task_id}", b"no record"))
    await scribe.task(born("b"))
    await carry(log, database)
    await in_step(database, folded(scribe.written))


@pytest.mark.parametrize("batch", [4, 10])
async def test_a_rebuild_stands_beside_what_is_read_until_it_is_complete(
    log: MemoryLog, database: Database, batch: int
) -> None:
    scribe, views = Scribe(log), Views(database)
    for _ in range(5):
        await scribe.task(born(), started())
    live = Projector(log, database)
    await live.run_to_end()
    rebuilt = await Generation.fresh(database)
    rebuilding = Projector(log, database, generation=rebuilt, batch=batch)
    await rebuilding.run_once()
    await scribe.task(born("meanwhile"))
    await live.run_to_end()
    await in_step(database, fold_of(log))
    assert not await rebuilt.is_served()
    await rebuilding.run_to_end()
    assert await rebuilt.is_served()
    await in_step(database, fold_of(log))
    # The one that carried the old generation goes on with the new one.
    await scribe.task(born("after"))
    await live.run_to_end()
    await in_step(database, fold_of(log))
    assert await views.checkpoint() == 12
    await asyncio.gather(live.close(), rebuilding.close())


async def test_readers_see_no_gap_while_generations_are_switched(log: MemoryLog, database: Database) -> None:
    scribe, views = Scribe(log), Views(database)
    for _ in range(5):
        await scribe.task(born(), started())
    await carry(log, database)
    tasks = fold_of(log)
    switched = asyncio.Event()

    async def read() -> int:
        count = 0
        while not switched.is_set():
            assert (await views.list(ANN, limit=10)).tasks == tasks
            count += 1
        return count

    reading = [asyncio.ensure_future(read()) for _ in range(3)]
    for _ in range(8):
        await carry(log, database, generation=await Generation.fresh(database))
    switched.set()
    assert min(await asyncio.gather(*reading)) > 0


async def test_a_given_up_rebuild_ends_with_a_named_error(log: MemoryLog, database: Database) -> None:
    await Scribe(log).task(born())
    first = await Generation.fresh(database)
    second = await Generation.fresh(database)
    with pytest.raises(Superseded):
        await carry(log, database, generation=first)
    await carry(log, database, generation=second)
    await in_step(database, fold_of(log))


async def test_another_fold_is_a_rebuild_beside_the_old_rows(
    log: MemoryLog, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    scribe, views = Scribe(log), Views(database)
    task_id = await scribe.task(born(), started())
    await carry(log, database)
    async with database.writing() as connection:
        await connection.execute(update(GENERATIONS).values(fold=FOLD_VERSION - 1))
    # Lists go on with the old rows; nobody's evolve goes on from them.
    assert len((await views.list(ANN, limit=5)).tasks) == 1
    assert await views.get(ANN, task_id) is None
    await carry(log, database)
    await in_step(database, fold_of(log))
    # A release that is older than the views keeps its hands off them.
    monkeypatch.setattr(generations, "FOLD_VERSION", FOLD_VERSION - 1)
    with pytest.raises(ViewsUnavailable, match="newer release"):
        await carry(log, database)


async def test_another_log_makes_the_views_void(log: MemoryLog, database: Database) -> None:
    for number in range(3):
        await Scribe(log).task(born(f"old {number}"))
    await carry(log, database)
    other = MemoryLog()
    scribe = Scribe(other)
    for number in range(5):  # longer than the old one: its length alone tells nothing
        await scribe.task(born(f"new {number}"))
    await carry(other, database)
    await in_step(database, fold_of(other))
    shorter = MemoryLog()
    await Scribe(shorter).task(born("newest"))
    await carry(shorter, database)
    await in_step(database, fold_of(shorter))


class FickleReplay(MemoryReplay):
    """A replay that can be told that its log is another one."""

    another = False

    async def take(self, at_most: int, *, within_s: float, linger_s: float = 0.0) -> list[Arrival]:
        taken = await super().take(at_most, within_s=within_s, linger_s=linger_s)
        if self.another:
            raise LogIsAnother("told so")
        return taken


class FickleLog(MemoryLog):
    """A log whose replays and tails can be told that it is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[FickleReplay] = []
        self.resets: list[OnReset] = []

    async def tail(self, on_arrival: OnArrival, on_reset: OnReset, *, after: int | None = None) -> MemoryTail:
        self.resets.append(on_reset)
        return await super().tail(on_arrival, on_reset, after=after)

    async def replay(self, *, after: int, owner: Owner | None = None, subjects: tuple[str, ...] = ()) -> FickleReplay:
        assert (owner, subjects) == (None, ())
        replay = FickleReplay(self, after, ())
        self.given.append(replay)
        self.replays.add(replay)
        return replay


async def test_a_log_that_goes_back_under_a_running_projector_is_read_anew(database: Database) -> None:
    log = FickleLog()
    scribe = Scribe(log)
    await scribe.task(born("a"), started())
    projector = Projector(log, database)
    running = asyncio.ensure_future(projector.run())
    await until(lambda: projector.position == 2)
    log.given[-1].another = True
    await until(lambda: len(log.given) > 1)
    await scribe.task(born("b"))
    await until(lambda: projector.position == 3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await projector.run_to_end()
    await projector.close()
    assert (await Generation.current(database)).number > 1
    await in_step(database, fold_of(log))


async def test_rows_that_a_crash_of_the_database_took_come_again(log: MemoryLog, database: Database) -> None:
    scribe = Scribe(log)
    await scribe.task(born("a"))
    projector = Projector(log, database)
    await projector.run_to_end()
    await scribe.task(born("b"))
    # As PostgreSQL is after a crash: its last transactions are gone as a whole.
    c = tasks_table(1).c
    async with database.writing() as connection:
        await connection.execute(tasks_table(1).delete().where(c.created == 1))
        await connection.execute(update(GENERATIONS).values(checkpoint=0, seen_sequence=0))
    await projector.run_to_end()
    await projector.close()
    await in_step(database, fold_of(log))


async def test_a_given_generation_of_another_log_is_an_error(log: MemoryLog, database: Database) -> None:
    await Scribe(log).task(born("a"))
    generation = await Generation.fresh(database)
    await carry(log, database, generation=generation)
    with pytest.raises(LogIsAnother):
        await carry(MemoryLog(), database, generation=generation)


KINDS = (Task, StepInHand, Halt, Session, Tally, SessionView)


def test_the_folds_number_is_raised_with_its_shape() -> None:
    """Where this fails: raise FOLD_VERSION, so that old views are built anew, and put the new digest here."""
    shape = [
        *sorted(TAGS | SESSION_TAGS),  # rows folded by who did not know a tag yet are not what they would be now
        *(f"{kind.__name__}.{field.name}: {field.type}" for kind in KINDS for field in fields(kind)),
        *(str(CreateTable(table)) for table in tables(1)),
        *sorted(
            f"{index.name} {[one.name for one in index.columns]}" for table in tables(1) for index in table.indexes
        ),
    ]
    digest = hashlib.sha256("\n".join(shape).encode()).hexdigest()[:16]
    assert (FOLD_VERSION, digest) == (5, "f7c90cc0865e3c10")
