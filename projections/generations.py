"""One generation of the views, as the projector carries it: rows and checkpoint go forward together, or not at all.

A generation is a table of tasks and a row of control. Of several that are there one is served; a new one is built
beside it and takes its place when it has reached the log's end.
"""

from collections.abc import Sequence

import structlog
from msgspec import Struct
from sqlalchemy import bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
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
MAX_HELD = 4_096
MAX_HELD_BYTES = 4_096
"""Of the tasks just written so many, none larger than this, are kept: their next records are near."""

Key = tuple[Owner, TaskId]


class Seen(Struct, frozen=True, kw_only=True):
    """The last task's record that was taken in."""

    owner: Owner
    task_id: TaskId
    sequence: int
    sha256: str


class Checkpoint(Struct, frozen=True, kw_only=True):
    """How far a generation is: the last sequence taken in, and which record of a task was the last."""

    sequence: int
    seen: Seen | None


class _Row(Struct, kw_only=True):
    """A task as a batch changes it. `created` is its place; `new`: it has no row yet."""

    created: int
    task: Task
    new: bool
    begun_at: int = 0
    listed_at: int = 0


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
        """The one that is to be carried: the served one; a new one where that is of another fold, or there is none.

        Raises ViewsUnavailable, also where the views are a newer release's.
        """
        async with database.writing(alone=True) as connection:
            await connection.run_sync(CONTROL.create_all)
            served = await _served(connection)
            known = {row.generation: row.fold for row in (await connection.execute(select(GENERATIONS))).tuples().all()} if False else await _folds(connection)
            if served is not None and known[served] > FOLD_VERSION:
                raise ViewsUnavailable("a newer release made the views; this one does not carry them")
            ours = [number for number, fold in known.items() if fold == FOLD_VERSION]
            if served in ours:
                return cls(database, served or 0)
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
