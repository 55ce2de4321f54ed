"""The session views: an owner's sessions as a list, one session, its tasks in their order; as far as the views are."""

from msgspec import Struct
from sqlalchemy import Select, Table, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore.events import Owner
from projections.database import Database
from projections.schema import (
    FOLD_VERSION,
    owners_table,
    session_key,
    sessions_table,
    storable,
    task_of,
    tasks_table,
)
from projections.served import Served, read
from projections.session import SessionView
from projections.session_rows import view_of
from projections.task import Task
from projections.views_errors import ViewsUnavailable


class ListedSession(Struct, frozen=True, kw_only=True):
    """A session that is there, with its first task and its latest, of which it may have one."""

    view: SessionView
    first: Task
    latest: Task


class SessionPage(Struct, frozen=True, kw_only=True):
    """Sessions, newest first by their first task, and how many there are in all."""

    sessions: list[ListedSession]
    total: int


class SessionTasks(Struct, frozen=True, kw_only=True):
    """A session, and some of its tasks, oldest first."""

    view: SessionView
    tasks: list[Task]


class SessionViews:
    """For reading, each answer as of one moment. Whatever the database does is a ViewsUnavailable; so are views of
    another release, which has none of this, or folds it otherwise."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, owner: Owner, *, offset: int, limit: int) -> SessionPage:
        """A page of the owner's sessions. Raises ViewsUnavailable."""

        async def ask(connection: AsyncConnection, served: Served) -> SessionPage:
            table = _ours(served)
            c = owners_table(served.generation).c
            counted = await connection.execute(select(c.sessions).where(c.owner == storable(owner)))
            total = counted.scalar_one_or_none() or 0
            if offset >= total:
                return SessionPage(sessions=[], total=total)
            bodies = (await connection.execute(page(table, owner, offset=offset, limit=limit))).scalars().all()
            views = [view_of(body) for body in bodies]
            c = tasks_table(served.generation).c
            places = {view.first for view in views} | {view.latest for view in views}
            rows = await connection.execute(select(c.created, c.body).where(c.created.in_(places)))
            tasks = {place: task_of(body) for place, body in rows}
            listed = [ListedSession(view=view, first=tasks[view.first], latest=tasks[view.latest]) for view in views]
            return SessionPage(sessions=listed, total=total)

        return await read(self._database, ask, at_one_moment=True)

    async def get(self, owner: Owner, session_id: str) -> SessionView | None:
        """The session, also where it has no tasks since it was deleted; None: nothing was ever said of it. Raises
        ViewsUnavailable."""

        async def ask(connection: AsyncConnection, served: Served) -> SessionView | None:
            return await _one(connection, _ours(served), owner, session_id)

        return await read(self._database, ask, at_one_moment=True)

    async def tasks(self, owner: Owner, session_id: str, *, offset: int = 0, limit: int) -> SessionTasks | None:
        """The session's tasks, oldest first; None: there is no such session. Raises ViewsUnavailable."""

        async def ask(connection: AsyncConnection, served: Served) -> SessionTasks | None:
            view = await _one(connection, _ours(served), owner, session_id)
            if view is None or not view.latest:
                return None
            mine = in_order(tasks_table(served.generation), view, offset=offset, limit=limit)
            bodies = (await connection.execute(mine)).scalars().all()
            return SessionTasks(view=view, tasks=[task_of(body) for body in bodies])

        return await read(self._database, ask, at_one_moment=True)


def page(table: Table, owner: Owner, *, offset: int, limit: int) -> Select[bytes]:
    """Bodies of the sessions that are there, newest first."""
    c = table.c
    there = select(c.created).where(c.owner == storable(owner), c.created.is_not(None))
    # The places first, by an index alone: a body is read of what is shown, not of what is passed over.
    places = there.order_by(c.created.desc()).offset(offset).limit(limit).subquery()
    shown = (c.owner == storable(owner)) & c.created.in_(select(places.c.created))
    return select(c.body).where(shown).order_by(c.created.desc())


def in_order(table: Table, view: SessionView, *, offset: int, limit: int) -> Select[bytes]:
    """Bodies of a session's tasks, oldest first."""
    c = table.c
    mine = (c.owner == storable(view.owner)) & (c.session_id == session_key(view.session_id))
    places = (
        select(c.created)
        .where(mine, c.created > view.session.deletion)
        .order_by(c.created)
        .offset(offset)
        .limit(limit)
        .subquery()
    )
    return select(c.body).where(c.created.in_(select(places.c.created))).order_by(c.created)


def _ours(served: Served) -> Table:
    if served.fold != FOLD_VERSION:
        raise ViewsUnavailable("the views are being built anew")
    return sessions_table(served.generation)


async def _one(connection: AsyncConnection, table: Table, owner: Owner, session_id: str) -> SessionView | None:
    c = table.c
    row = select(c.body).where(c.owner == storable(owner), c.word == session_key(session_id))
    body = (await connection.execute(row)).scalar_one_or_none()
    return None if body is None else view_of(body)
