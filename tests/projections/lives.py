"""Lives of tasks for the views' tests: written to a log, and folded from it, which is what the rows must equal."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import reduce
from uuid import UUID, uuid4

from eventstore import codec
from eventstore.events import Json, Owner, Record, TaskCreated, TaskFact, TaskId, UnknownFact
from eventstore.log import EventLog, Recorded, task_of_subject, task_subject
from eventstore.memory import MemoryLog
from projections.database import Database
from projections.generations import Generation
from projections.listing import EVERYTHING, Filter
from projections.projector import Projector
from projections.task import INITIAL, Task, evolve
from projections.views import Views
from tests.given import BEGIN

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
