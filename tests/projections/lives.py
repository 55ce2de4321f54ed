"""Lives of tasks for the views' tests: written to a log, and folded from it, which is what the rows must equal."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import reduce
from uuid import UUID, uuid4

from eventstore import codec
from eventstore.events import Json, Owner, Record, SessionFact, TaskCreated, TaskFact, TaskId, UnknownFact
from eventstore.log import (
    Arrival,
    EventLog,
    Recorded,
    session_of_subject,
    session_word,
    task_of_subject,
    task_subject,
)
from eventstore.memory import MemoryLog
from projections.database import Database
from projections.generations import Generation
from projections.listing import EVERYTHING, Filter
from projections.projector import Projector
from projections.session import NANOS, Session, SessionView, Tally
from projections.session import evolve as evolve_session
from projections.session_views import SessionViews
from projections.task import INITIAL, Task, evolve
from projections.views import Views
from tests.given import BEGIN
from tests.log.logs import session_record_of

ANN = Owner("ann")
BOB = Owner("bob")


def numbered(number: int) -> TaskId:
    return TaskId(f"task_{UUID(int=number)}")


def born(
    title: str | None = None, *, agent: str = "simulator", input: Json = None, session_id: str | None = None
) -> TaskCreated:
    return TaskCreated(agent=agent, fingerprint="f", title=title, input=input, session_id=session_id)


class Scribe:
    """Writes facts to a log, each task's records in order."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._last: dict[tuple[Owner, TaskId], Recorded] = {}
        self.written: list[Recorded] = []

    async def write(self, owner: Owner, task_id: TaskId, *facts: TaskFact | UnknownFact, at: datetime = BEGIN) -> None:
        for fact in facts:
            before = self._last.get((owner, task_id))
            record = Record(
                record_id=uuid4().hex,
                version=before.record.version + 1 if before else 1,
                at=max(at, before.record.at + timedelta(seconds=1)) if before else at,
                actor="test",
                causation_id=None,
                correlation_id=None,
                previous=before.sha256 if before else "",
                fact=fact,
            )
            recorded = await self._log.append(owner, task_id, record, before.sequence if before else 0)
            self._last[owner, task_id] = recorded
            self.written.append(recorded)

    async def session(self, owner: Owner, session_id: str, *facts: SessionFact | UnknownFact) -> None:
        """These happen to a session."""
        for fact in facts:
            written = await self._log.read_session(owner, session_id)
            record = session_record_of(fact, written[-1] if written else None)
            await self._log.append_session(owner, session_id, record, written[-1].sequence if written else 0)

    async def task(self, *facts: TaskFact, owner: Owner = ANN, at: datetime = BEGIN) -> TaskId:
        """A new task with this life."""
        task_id = TaskId(f"task_{uuid4()}")
        await self.write(owner, task_id, *facts, at=at)
        return task_id


def fold_of(log: MemoryLog) -> list[Task]:
    """All tasks, by a fold of the whole log, newest first."""
    return folded([codec.recorded(arrival) for arrival in log.arrivals if task_of_subject(arrival.subject) is not None])


def folded(records: Sequence[Recorded]) -> list[Task]:
    """The same, of records in their order."""
    histories: dict[str, list[Recorded]] = {}
    for one in sorted(records, key=lambda one: one.sequence):
        histories.setdefault(task_subject(one.owner, one.task_id), []).append(one)
    return [reduce(evolve, history, INITIAL) for history in reversed(histories.values())]


def sessions_of(arrivals: Sequence[Arrival]) -> list[tuple[SessionView, list[Task]]]:
    """What is there of sessions, counted anew from the whole log, newest first, each with its tasks in order."""
    begun: dict[tuple[Owner, TaskId], int] = {}
    own: dict[tuple[Owner, str], Session] = {}
    records = [codec.recorded(one) for one in arrivals if task_of_subject(one.subject) is not None]
    for one in arrivals:
        if session_of_subject(one.subject) is not None:
            said = codec.session_recorded(one)
            own[said.owner, said.word] = evolve_session(own.get((said.owner, said.word), Session()), said)
    for one in records:
        begun.setdefault((one.owner, one.task_id), one.sequence)
    members: dict[tuple[Owner, str], list[Task]] = {}
    for task in reversed(folded(records)):
        if task.session_id is not None:
            members.setdefault((task.owner, task.session_id), []).append(task)
    found: list[tuple[SessionView, list[Task]]] = []
    for (owner, session_id), tasks in members.items():
        session = own.get((owner, session_word(session_id)), Session())
        kept = [task for task in tasks if begun[owner, task.task_id] > session.deletion]
        if not kept:
            continue
        places = [begun[owner, task.task_id] for task in kept]
        view = SessionView(
            owner=owner,
            session_id=session_id,
            session=session,
            tally=Tally(
                tasks=len(kept),
                completed=[task.status for task in kept].count("completed"),
                failed=sum(task.status in ("failed", "timed_out") for task in kept),
                input_tokens=sum(task.usage.input_tokens for task in kept if task.usage),
                output_tokens=sum(task.usage.output_tokens for task in kept if task.usage),
                cost_nanos=sum(round(task.usage.cost * NANOS) for task in kept if task.usage),
            ),
            first=places[0],
            latest=places[-1],
            active_at=max(task.updated_at for task in kept if task.updated_at),
        )
        found.append((view, kept))
    return sorted(found, key=lambda one: -one[0].first)


async def sessions_in_step(database: Database, arrivals: Sequence[Arrival], *owners: Owner) -> None:
    """Assert that the sessions' rows, listed in pages and one by one, are those of the log."""
    views = SessionViews(database)
    expected = sessions_of(arrivals)
    for owner in owners or (ANN,):
        hers = [(view, tasks) for view, tasks in expected if view.owner == owner]
        offset = 0
        while True:
            page = await views.list(owner, offset=offset, limit=2)
            assert page.total == len(hers)
            listed = [(one.view, one.first, one.latest) for one in page.sessions]
            assert listed == [(view, tasks[0], tasks[-1]) for view, tasks in hers[offset : offset + 2]]
            if not listed:
                break
            offset += 2
        for view, tasks in hers:
            assert await views.get(owner, view.session_id) == view
            for begin, limit in ((0, 1000), (1, 2), (len(tasks), 5)):
                told = await views.tasks(owner, view.session_id, offset=begin, limit=limit)
                assert told is not None
                assert told.tasks == tasks[begin : begin + limit]


async def rows(views: Views, owner: Owner, wanted: Filter = EVERYTHING, *, limit: int = 7) -> list[Task]:
    """All pages of a list, one after the other."""
    page = await views.list(owner, wanted, limit=limit)
    tasks = page.tasks
    while page.next_cursor is not None:
        page = await views.list(owner, wanted, after=page.next_cursor, limit=limit)
        assert len(page.tasks) <= limit
        tasks = tasks + page.tasks
    return tasks


async def in_step(database: Database, tasks: Sequence[Task], *owners: Owner) -> None:
    """Assert that the rows, listed and one by one, are these tasks."""
    views = Views(database)
    for owner in owners or (ANN,):
        assert await rows(views, owner) == [task for task in tasks if task.owner == owner]
    for task in tasks:
        assert await views.get(task.owner, task.task_id) == task


async def carry(log: EventLog, database: Database, *, generation: Generation | None = None) -> None:
    """Take in all that is in the log, with a projector of its own."""
    projector = Projector(log, database, generation=generation)
    try:
        await projector.run_to_end()
    finally:
        await projector.close()
