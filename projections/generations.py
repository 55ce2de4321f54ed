"""One generation of the views, as the projector carries it: rows and checkpoint go forward together, or not at all.

A generation is a table of tasks, one of sessions, and a row of control. Of several that are there one is served; a new
one is built beside it and takes its place when it has reached the log's end.
"""

from collections.abc import Sequence

import structlog
from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import DropTable

from eventstore.log import Recorded, SessionRecorded
from projections import session_rows
from projections.checkpoint import Checkpoint
from projections.database import Database
from projections.rows import Control, Rows
from projections.schema import (
    CONTROL,
    FOLD_VERSION,
    GENERATIONS,
    NAME,
    PROGRESS,
    SERVED,
    checkpoint_of,
    tables,
    tasks_table,
)
from projections.views_errors import Superseded, ViewsUnavailable

log = structlog.stdlib.get_logger()


class Generation:
    """Build with `current` or `fresh`. Several processes may carry the same one: whoever is late changes nothing."""

    def __init__(self, database: Database, number: int) -> None:
        self.database = database
        self.number = number
        self._rows = Rows(tasks_table(number))

    @classmethod
    async def current(cls, database: Database) -> "Generation":
        """The one to be carried: the served one; where that is of an older fold, or there is none, one beside it.

        Raises ViewsUnavailable, also where the views are a newer release's.
        """
        return await database.whole(cls._current(database))

    @classmethod
    async def fresh(cls, database: Database) -> "Generation":
        """A new one, empty, not yet served; an unfinished one is given up. Raises ViewsUnavailable."""
        return await database.whole(cls._fresh(database))

    async def checkpoint(self) -> Checkpoint:
        """How far it is. Raises Superseded, ViewsUnavailable."""
        return await self.database.whole(self._checkpoint())

    async def apply(
        self, records: Sequence[Recorded], *, sessions: Sequence[SessionRecorded] = (), after: int, upto: int
    ) -> int:
        """Take in the log from `after` (exclusive) to `upto`: `records` are all the tasks' records in between, and
        `sessions` the sessions'.

        The checkpoint afterwards: `upto`, or more where another projector was ahead; what lies before the checkpoint
        is passed over. Raises ViewsUnavailable: then all of it, or nothing, was taken in, and repeating it is safe.
        Raises Superseded where the generation is gone, or has not come as far as `after`.
        """
        return await self.database.whole(self._apply(records, sessions, after, upto))

    async def serve(self, *, reached: int, end: int) -> int | None:
        """From now on this one is read; the others go. Raises Superseded, ViewsUnavailable.

        None: it is done. Else nothing was, for the one that is read is further than this one has `reached`, and this is
        how far: nobody's list is to go back. (Further than the log's `end`: it is another log's.)
        """
        return await self.database.whole(self._serve(reached, end))

    async def is_served(self) -> bool:
        """Whether this is the one that is read. Raises ViewsUnavailable."""
        return await self.database.whole(self._is_served())

    async def void(self) -> None:
        """The log is another one: no generation says anything true any more. Raises ViewsUnavailable."""
        await self.database.whole(self._void())

    # --- each of these is one transaction ---------------------------------------------------------------------------

    @classmethod
    async def _current(cls, database: Database) -> "Generation":
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
    async def _fresh(cls, database: Database) -> "Generation":
        async with database.writing(alone=True) as connection:
            await connection.run_sync(CONTROL.create_all)
            served = await _served(connection)
            for number in await _folds(connection):
                if number != served:
                    await _drop(connection, number)
            return cls(database, await _create(connection))

    async def _checkpoint(self) -> Checkpoint:
        async with self.database.reading() as connection:
            row = (await connection.execute(select(*PROGRESS).where(self._mine))).one_or_none()
        if row is None:
            raise Superseded(f"generation {self.number} of the views is gone")
        return checkpoint_of(*row)

    async def _serve(self, reached: int, end: int) -> int | None:
        async with self.database.writing(alone=True) as connection:
            folds = await _folds(connection)
            if self.number not in folds:
                raise Superseded(f"generation {self.number} of the views is gone")
            served = await _served(connection)
            if served is not None and folds[served] > FOLD_VERSION:
                raise ViewsUnavailable("a newer release made the views; this one does not replace them")
            further = 0 if served is None else await _checkpoint(connection, served)
            if reached < further <= end:
                return further
            await connection.execute(update(SERVED).values(generation=self.number))
            for number in folds:
                if number != self.number:
                    await _drop(connection, number)
        log.info("views.served", generation=self.number)
        return None

    async def _is_served(self) -> bool:
        async with self.database.reading() as connection:
            return await _served(connection) == self.number

    async def _void(self) -> None:
        async with self.database.writing(alone=True) as connection:
            folds = await _folds(connection)
            if self.number in folds:  # else another projector saw it first
                await connection.execute(update(SERVED).values(generation=None))
                for number in folds:
                    await _drop(connection, number)
        log.warning("views.void", generation=self.number)

    async def _apply(
        self, records: Sequence[Recorded], sessions: Sequence[SessionRecorded], after: int, upto: int
    ) -> int:
        async with self.database.writing() as connection:
            control = await self._lock(connection)
            if control.checkpoint < after:
                # The database lost its last transactions, say: a gap must not come into it.
                raise Superseded(f"the views are at {control.checkpoint}, not at {after}")
            if control.checkpoint >= upto:
                return control.checkpoint
            new = [one for one in records if one.sequence > control.checkpoint]
            folded = await self._rows.fold(connection, new, control.checkpoint)
            progress = await self._rows.write(connection, folded, control)
            theirs = [one for one in sessions if one.sequence > control.checkpoint]
            await session_rows.carry(connection, self.number, folded, theirs, upto)
            if new:
                last = new[-1]
                seen = {"seen_owner": last.owner, "seen_task": last.task_id}
                progress |= {**seen, "seen_sequence": last.sequence, "seen_sha256": last.sha256}
            await connection.execute(update(GENERATIONS).where(self._mine).values(checkpoint=upto, **progress))
        self._rows.hold(folded, upto)
        return upto

    @property
    def _mine(self) -> ColumnElement[bool]:
        return GENERATIONS.c.generation == self.number

    async def _lock(self, connection: AsyncConnection) -> Control:
        """Our row of control, which nobody else writes before we have committed."""
        control = select(GENERATIONS.c.checkpoint, GENERATIONS.c.latest_at, GENERATIONS.c.skew)
        row = (await connection.execute(control.where(self._mine).with_for_update())).one_or_none()
        if row is None:
            raise Superseded(f"generation {self.number} of the views is gone")
        return Control(*row)


async def _served(connection: AsyncConnection) -> int | None:
    return (await connection.execute(select(SERVED.c.generation).where(SERVED.c.name == NAME))).scalar_one_or_none()


async def _folds(connection: AsyncConnection) -> dict[int, int]:
    """The generations that are there, and of which fold each is."""
    rows = await connection.execute(select(GENERATIONS.c.generation, GENERATIONS.c.fold))
    return {number: fold for number, fold in rows}


async def _checkpoint(connection: AsyncConnection, number: int) -> int:
    found = select(GENERATIONS.c.checkpoint).where(GENERATIONS.c.generation == number)
    return (await connection.execute(found)).scalar_one()


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
    for table in tables(number):
        await connection.run_sync(table.create)
    return number


async def _drop(connection: AsyncConnection, number: int) -> None:
    # The row first: it waits for whoever is in the middle of a batch.
    await connection.execute(delete(GENERATIONS).where(GENERATIONS.c.generation == number))
    for table in tables(number):
        await connection.execute(DropTable(table, if_exists=True))  # older folds had fewer
