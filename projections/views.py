"""The task views: one task as last taken in, an owner's tasks as a list; behind the log by what is yet to come in."""

from collections.abc import Callable

from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore.events import Owner, TaskId
from projections.checkpoint import Checkpoint
from projections.database import Database
from projections.listing import EVERYTHING, Between, Filter, Listing, cursor_of, living, place_of
from projections.schema import (
    FOLD_VERSION,
    GENERATIONS,
    PROGRESS,
    checkpoint_of,
    storable,
    task_of,
    tasks_table,
)
from projections.served import Served, read, what_is_served
from projections.task import Task
from projections.views_errors import ViewsUnavailable

MAX_PAGE = 1_000


class Page(Struct, frozen=True, kw_only=True):
    """Tasks, newest first. There are more where there is a cursor; a search may then show fewer than were asked for,
    even none: it looks through `MAX_SEARCHED` tasks a page."""

    tasks: list[Task]
    next_cursor: str | None


class Count(Struct, frozen=True, kw_only=True):
    """How many tasks; where that is not `exact`, at least so many (a search counts in the newest `MAX_SEARCHED`)."""

    tasks: int
    exact: bool


class Views:
    """What a projector has made of the log, for reading. Whatever the database does is a ViewsUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def checkpoint(self) -> int:
        """The last sequence that is in here. Raises ViewsUnavailable."""

        async def ask(connection: AsyncConnection, served: Served) -> int:
            del connection
            return served.checkpoint

        return await read(self._database, ask)

    async def get(self, owner: Owner, task_id: TaskId) -> Task | None:
        """The task as of its `sequence`, to read on from. None: not in here, or not whole, or only in another
        release's words. Raises ViewsUnavailable."""

        async def ask(connection: AsyncConnection, served: Served) -> Task | None:
            if served.fold != FOLD_VERSION:
                return None  # today's evolve must not go on from what another one made
            c = tasks_table(served.generation).c
            row = select(c.body).where(c.owner == storable(owner), c.task_id == storable(task_id), c.whole)
            body = (await connection.execute(row)).scalar_one_or_none()
            return None if body is None else task_of(body)

        return await read(self._database, ask)

    async def living(self, take: Callable[[Task, int], None]) -> Checkpoint:
        """Have this called with each task, of any owner, that has not ended by the checkpoint, and with the sequence
        of its first fact. Raises ViewsUnavailable: then what was taken so far is void."""
        return await self._database.whole(self._living(take))

    async def _living(self, take: Callable[[Task, int], None]) -> Checkpoint:
        async with self._database.reading(at_one_moment=True) as connection:
            served = await what_is_served(connection)
            if served.fold != FOLD_VERSION:
                raise ViewsUnavailable("the views are another release's")
            mine = select(*PROGRESS).where(GENERATIONS.c.generation == served.generation)
            checkpoint = checkpoint_of(*(await connection.execute(mine)).one())
            table, last = tasks_table(served.generation), 0
            while rows := (await connection.execute(living(table, Between(low=last), MAX_PAGE))).all():
                for last, body in rows:
                    take(task_of(body), last)
            return checkpoint

    async def list(
        self, owner: Owner, wanted: Filter = EVERYTHING, *, after: str | None = None, offset: int = 0, limit: int
    ) -> Page:
        """A page of the owner's tasks, newest first by their first fact; `after` is the page before's cursor. The first
        `offset` are passed over: each costs a step along the index, so a cursor is the better way to go on.

        Raises BadCursor, ViewsUnavailable; ValueError where `limit` is not 1 to MAX_PAGE."""
        if not 1 <= limit <= MAX_PAGE:
            raise ValueError(f"a page has 1 to {MAX_PAGE} tasks, not {limit}")
        start = Between(low=wanted.above) if after is None else Between(wanted.above, place_of(after))

        async def ask(connection: AsyncConnection, served: Served) -> Page:
            listing = self._listing(owner, wanted, served)
            between = await _narrowed(connection, listing, wanted, start, served.skew)
            if between is None:
                return Page(tasks=[], next_cursor=None)
            between, horizon = await _within_sight(connection, listing, wanted, between)
            rows = (await connection.execute(listing.page(between, limit + 1, offset))).all()
            last = rows[limit - 1].created if len(rows) > limit else horizon
            return Page(
                tasks=[task_of(row.body) for row in rows[:limit]],
                next_cursor=None if last is None else cursor_of(last),
            )

        return await read(self._database, ask)

    async def count(self, owner: Owner, wanted: Filter = EVERYTHING) -> Count:
        """How many of the owner's tasks pass. It walks them all: only on request. Raises ViewsUnavailable."""

        async def ask(connection: AsyncConnection, served: Served) -> Count:
            listing = self._listing(owner, wanted, served)
            between = await _narrowed(connection, listing, wanted, Between(low=wanted.above), served.skew)
            if between is None:
                return Count(tasks=0, exact=True)
            between, horizon = await _within_sight(connection, listing, wanted, between)
            tasks = (await connection.execute(listing.count(between))).scalar_one()
            return Count(tasks=tasks, exact=horizon is None)

        return await read(self._database, ask)

    def _listing(self, owner: Owner, wanted: Filter, served: Served) -> Listing:
        owner = Owner(storable(owner))
        return Listing(tasks_table(served.generation), owner, wanted, sqlite=self._database.sqlite)


async def _narrowed(
    connection: AsyncConnection, listing: Listing, wanted: Filter, between: Between, skew: int
) -> Between | None:
    """The part of the list that the filter's times leave; None: nothing."""
    if wanted.statuses is not None and not wanted.statuses:
        return None
    low, high = between.low, between.high
    if wanted.created_after is not None:
        first = (await connection.execute(listing.first_since(wanted.created_after))).scalar_one_or_none()
        if first is None:
            return None
        low = max(low, first - 1)
    if wanted.created_before is not None:
        last = (await connection.execute(listing.last_until(wanted.created_before, skew))).scalar_one_or_none()
        if last is None:
            return None
        high = min(high, last + 1)
    return Between(low=low, high=high)


async def _within_sight(
    connection: AsyncConnection, listing: Listing, wanted: Filter, between: Between
) -> tuple[Between, int | None]:
    """The part of it that one search looks through, and its last place where there is more beyond."""
    if not wanted.q:
        return between, None
    places = (await connection.execute(listing.horizon(between))).scalars().all()
    if len(places) < 2:
        return between, None
    return Between(low=places[0] - 1, high=between.high), places[0]
