"""One generation of the views, as the projector carries it: rows and checkpoint go forward together, or not at all.

A generation is a table of tasks and a row of control. Of several that are there one is served; a new one is built
beside it and takes its place when it has reached the log's end.
"""

from collections.abc import Sequence

import structlog
from msgspec import Struct
from sqlalchemy import ColumnElement, bindparam, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore.events import Owner, TaskId
from eventstore.log import Recorded
from projections.database import Database, Superseded, ViewsUnavailable
from projections.schema import (
    CONTROL,
    FOLD_VERSION,
    GENERATIONS,
    NAME,
    SERVED,
    body_of,
    indexed,
    micros,
    searched,
    task_of,
    tasks_table,
    text_of,
)
from projections.task import INITIAL, Task, evolve

log = structlog.stdlib.get_logger()

AT_ONCE = 500
"""Rows that one statement asks for; SQLite takes 32,766 values."""
MAX_HELD = 8_192
MAX_HELD_BYTES = 4_096
"""Of the tasks last written so many, none larger than this, are kept: their next records are near."""

Key = tuple[Owner, TaskId]
Values = dict[str, object]


class Seen(Struct, frozen=True, kw_only=True):
    """The last task's record that was taken in."""

    owner: Owner
    task_id: TaskId
    sequence: int
    sha256: str


class Checkpoint(Struct, frozen=True, kw_only=True):
    """How far a generation is: the last sequence taken in, and which record of a task was the last (None: none)."""

    sequence: int
    seen: Seen | None


class _Control(Struct, frozen=True):
    """A generation's row of control."""

    checkpoint: int
    latest_at: int
    skew: int


class _Folding(Struct):
    """A task while a batch is folded. `created` is its place in the lists, and its row's key."""

    created: int
    task: Task
    new: bool
    begun_at: int = 0


class Generation:
    """Build with `current` or `fresh`. Several processes may carry the same one: whoever is late changes nothing."""

    def __init__(self, database: Database, number: int) -> None:
        self.database = database
        self.number = number
        self._table = tasks_table(number)
        self._held: dict[Key, tuple[int, Task]] = {}
        self._held_at = -1

    @classmethod
    async def current(cls, database: Database) -> "Generation":
        """The one to be carried: the served one; where that is of an older fold, or there is none, one beside it.

        Raises ViewsUnavailable, also where the views are a newer release's.
        """
        async with database.writing(alone=True) as connection:
            await connection.run_sync(CONTROL.create_all)
            served, folds = await _served(connection), await _folds(connection)
            if served is not None and folds[served] > FOLD_VERSION:
                raise ViewsUnavailable("a newer release made the views; this one does not carry them")
            ours = [number for number, fold in folds.items() if fold == FOLD_VERSION]
            if served is not None and served in ours:
                return cls(database, served)
            return cls(database, max(ours) if ours else await _create(connection))

    @classmethod
    async def fresh(cls, database: Database) -> "Generation":
        """A new one, empty, not yet served; an unfinished one is given up. Raises ViewsUnavailable."""
        async with database.writing(alone=True) as connection:
            await connection.run_sync(CONTROL.create_all)
            served = await _served(connection)
            for number in await _folds(connection):
                if number != served:
                    await _drop(connection, number)
            return cls(database, await _create(connection))

    async def checkpoint(self) -> Checkpoint:
        """How far it is. Raises Superseded, ViewsUnavailable."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(GENERATIONS).where(self._mine))).one_or_none()
        if row is None:
            raise Superseded(f"generation {self.number} of the views is gone")
        seen = Seen(
            owner=Owner(row.seen_owner),
            task_id=TaskId(row.seen_task),
            sequence=row.seen_sequence,
            sha256=row.seen_sha256,
        )
        return Checkpoint(sequence=row.checkpoint, seen=seen if seen.sequence else None)

    async def apply(self, records: Sequence[Recorded], *, after: int, upto: int) -> int:
        """Take in the log from `after` (exclusive) to `upto`: `records` are all the tasks' records in between.

        The checkpoint afterwards: `upto`, or more where another projector was ahead; what lies before the checkpoint
        is passed over. Raises ViewsUnavailable: then all of it, or nothing, was taken in, and repeating it is safe.
        Raises Superseded where the generation is gone, or has not come as far as `after`.
        """
        try:
            async with self.database.writing() as connection:
                control = await self._lock(connection)
                if control.checkpoint < after:
                    # The database lost its last transactions, say: a gap must not come into it.
                    raise Superseded(f"the views are at {control.checkpoint}, not at {after}")
                if control.checkpoint >= upto:
                    return control.checkpoint
                new = [one for one in records if one.sequence > control.checkpoint]
                folding = await self._fold(connection, new, control)
                await self._write(connection, folding, control, new[-1] if new else None, upto)
        except BaseException:
            self._held.clear()  # whether this was committed is not known
            raise
        self._hold(folding, upto)
        return upto

    async def serve(self) -> None:
        """From now on this one is read; the others go. Raises Superseded, ViewsUnavailable."""
        async with self.database.writing(alone=True) as connection:
            folds = await _folds(connection)
            if self.number not in folds:
                raise Superseded(f"generation {self.number} of the views is gone")
            served = await _served(connection)
            if served is not None and folds[served] > FOLD_VERSION:
                raise ViewsUnavailable("a newer release made the views; this one does not replace them")
            await connection.execute(update(SERVED).values(generation=self.number))
            for number in folds:
                if number != self.number:
                    await _drop(connection, number)
        log.info("views.served", generation=self.number)

    async def is_served(self) -> bool:
        """Whether this is the one that is read. Raises ViewsUnavailable."""
        async with self.database.reading() as connection:
            return await _served(connection) == self.number

    async def void(self) -> None:
        """The log is another one: no generation says anything true any more. Raises ViewsUnavailable."""
        async with self.database.writing(alone=True) as connection:
            folds = await _folds(connection)
            if self.number in folds:  # else another projector saw it first
                await connection.execute(update(SERVED).values(generation=None))
                for number in folds:
                    await _drop(connection, number)
        log.warning("views.void", generation=self.number)

    # --- one batch ------------------------------------------------------------------------------------------------

    @property
    def _mine(self) -> ColumnElement[bool]:
        return GENERATIONS.c.generation == self.number

    async def _lock(self, connection: AsyncConnection) -> _Control:
        """Our row of control, which nobody else writes before we have committed."""
        control = select(GENERATIONS.c.checkpoint, GENERATIONS.c.latest_at, GENERATIONS.c.skew)
        row = (await connection.execute(control.where(self._mine).with_for_update())).one_or_none()
        if row is None:
            raise Superseded(f"generation {self.number} of the views is gone")
        return _Control(*row)

    async def _fold(
        self, connection: AsyncConnection, records: Sequence[Recorded], control: _Control
    ) -> dict[Key, _Folding]:
        """The batch's tasks after it, in the order in which the batch first names them."""
        if control.checkpoint != self._held_at:
            self._held.clear()  # another projector wrote in between
        keys = dict.fromkeys((one.owner, one.task_id) for one in records)
        stored = await self._stored(connection, [key for key in keys if key not in self._held]) | self._held
        folding: dict[Key, _Folding] = {}
        for one in records:
            key = one.owner, one.task_id
            now = folding.get(key)
            if now is None:
                created, task = stored.get(key, (one.sequence, INITIAL))
                now = folding[key] = _Folding(created, task, task.version == 0, micros(one.record.at))
            if one.sequence > now.task.sequence:
                now.task = evolve(now.task, one)
        return folding

    async def _stored(self, connection: AsyncConnection, keys: list[Key]) -> dict[Key, tuple[int, Task]]:
        c = self._table.c
        found: dict[Key, tuple[int, Task]] = {}
        for at in range(0, len(keys), AT_ONCE):
            these = tuple_(c.owner, c.task_id).in_(keys[at : at + AT_ONCE])
            rows = await connection.execute(select(c.owner, c.task_id, c.created, c.body).where(these))
            for owner, task_id, created, body in rows:
                found[owner, task_id] = created, task_of(body)
        return found

    async def _write(
        self,
        connection: AsyncConnection,
        folding: dict[Key, _Folding],
        control: _Control,
        last: Recorded | None,
        upto: int,
    ) -> None:
        latest_at, skew = control.latest_at, control.skew
        inserts: list[Values] = []
        updates: list[Values] = []
        for (owner, task_id), now in folding.items():
            if not now.new:
                updates.append({"row": now.created, **_changing(now.task)})
                continue
            latest_at = max(latest_at, now.begun_at)
            skew = max(skew, latest_at - now.begun_at)
            begun = {"created": now.created, "owner": owner, "task_id": task_id}
            times = {"created_at": now.begun_at, "listed_at": latest_at}
            inserts.append({**begun, **times, **_fixed(now.task), **_changing(now.task)})
        if inserts:
            await connection.execute(insert(self._table), inserts)
        if updates:
            c = self._table.c
            changed: Values = {name: bindparam(name, type_=c[name].type) for name in updates[0] if name != "row"}
            # Guarded although the row of control is locked: no row ever goes back.
            older = (c.created == bindparam("row")) & (c.sequence < bindparam("sequence"))
            await connection.execute(update(self._table).where(older).values(changed), updates)
        progress: Values = {"checkpoint": upto, "latest_at": latest_at, "skew": skew}
        if last is not None:
            seen = {"seen_owner": last.owner, "seen_task": last.task_id}
            progress |= {**seen, "seen_sequence": last.sequence, "seen_sha256": last.sha256}
        await connection.execute(update(GENERATIONS).where(self._mine).values(progress))

    def _hold(self, folding: dict[Key, _Folding], upto: int) -> None:
        for key, now in folding.items():
            self._held.pop(key, None)
            if not now.task.ended:
                self._held[key] = now.created, now.task
        while len(self._held) > MAX_HELD:
            del self._held[next(iter(self._held))]
        self._held_at = upto


def _fixed(task: Task) -> Values:
    """What a task's first fact says, and none later."""
    return {
        "agent": indexed(task.agent),
        "session_id": None if task.session_id is None else indexed(task.session_id),
        "title": searched(task.title or ""),
        "input_text": searched(text_of(task.input)),
    }


def _changing(task: Task) -> Values:
    return {
        "status": task.status,
        "updated_at": 0 if task.updated_at is None else micros(task.updated_at),
        "sequence": task.sequence,
        "version": task.version,
        "sha256": task.sha256,
        "body": body_of(task),
    }


async def _served(connection: AsyncConnection) -> int | None:
    return (await connection.execute(select(SERVED.c.generation).where(SERVED.c.name == NAME))).scalar_one_or_none()


async def _folds(connection: AsyncConnection) -> dict[int, int]:
    """The generations that are there, and of which fold each is."""
    rows = await connection.execute(select(GENERATIONS.c.generation, GENERATIONS.c.fold))
    return {number: fold for number, fold in rows}


async def _create(connection: AsyncConnection) -> int:
    last = (
        await connection.execute(select(SERVED.c.last_generation).where(SERVED.c.name == NAME))
    ).scalar_one_or_none()
    # Never a number that was there before: whoever still carries the one that had it must not write into this.
    number = (last or 0) + 1
    if last is None:
        await connection.execute(insert(SERVED).values(name=NAME, generation=None, last_generation=number))
    else:
        await connection.execute(update(SERVED).values(last_generation=number))
    await connection.execute(insert(GENERATIONS).values(generation=number, fold=FOLD_VERSION))
    await connection.run_sync(tasks_table(number).create)
    return number


async def _drop(connection: AsyncConnection, number: int) -> None:
    # The row first: it waits for whoever is in the middle of a batch.
    await connection.execute(delete(GENERATIONS).where(GENERATIONS.c.generation == number))
    await connection.run_sync(tasks_table(number).drop)
