"""The views in this deployment: carried along the log by one projector, read by every API process."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from app.offices import hold_office
from app.settings import LogSettings
from eventstore.connection import Connection
from eventstore.election import Election
from eventstore.events import Owner, TaskId
from eventstore.jetstream import JetStreamLog
from projections.database import Database
from projections.listing import Filter
from projections.projector import Projector
from projections.seldom import Seldom
from projections.session import SessionView
from projections.session_views import SessionPage, SessionTasks, SessionViews
from projections.task import Task
from projections.views import Count, Page, Views
from projections.views_errors import ViewsUnavailable

log = structlog.stdlib.get_logger()

Answer = TypeVar("Answer")
OFFICE = "views"
AGAIN_S = 1.0
AT_ONCE_S = 0.2
"""What a poll waits for the views; longer than the log takes for most histories."""
REST_S = 2.0
"""So long they are not asked again where they did not answer at once: each question may hold a connection."""
REACH_S, LOOK_S = 5.0, 0.02
"""How long somebody who needs the views as of now waits for them, and how often it looks."""
NONE_KEPT = "this deployment keeps no views (--views-url), so there are no lists"
NOT_NOW = "the views are being built, or their database is away; tasks can be asked for one by one"


class Lists:
    """The views, for reading. To a list, whatever is wrong with them, or their absence, is a ViewsUnavailable."""

    def __init__(self, views_url: str | None) -> None:
        self._database = None if views_url is None else Database.open(views_url)
        self._resting_until = 0.0
        self._seldom = Seldom()

    async def task(self, owner: Owner, task_id: TaskId) -> Task | None:
        """The task as of its `sequence`, if the views have it and say so at once; maybe not what the log says now."""
        if time.monotonic() < self._resting_until:
            return None
        try:
            async with asyncio.timeout(AT_ONCE_S):
                return await self._views().get(owner, task_id)
        except (ViewsUnavailable, TimeoutError) as error:
            self._resting_until = time.monotonic() + REST_S
            log.info("views.passed_over", error=str(error) or "too slow", again_in_s=REST_S)
            return None

    async def page(
        self, owner: Owner, wanted: Filter, *, after: str | None = None, offset: int = 0, limit: int
    ) -> Page:
        """As `Views.list`. Raises BadCursor, ViewsUnavailable."""
        return await self._asked(self._views().list(owner, wanted, after=after, offset=offset, limit=limit))

    async def count(self, owner: Owner, wanted: Filter) -> Count:
        """As `Views.count`. Raises ViewsUnavailable."""
        return await self._asked(self._views().count(owner, wanted))

    async def session(self, owner: Owner, session_id: str) -> SessionView | None:
        """As `SessionViews.get`. Raises ViewsUnavailable."""
        return await self._asked(SessionViews(self._there()).get(owner, session_id))

    async def sessions(self, owner: Owner, *, offset: int, limit: int) -> SessionPage:
        """As `SessionViews.list`. Raises ViewsUnavailable."""
        return await self._asked(SessionViews(self._there()).list(owner, offset=offset, limit=limit))

    async def session_tasks(self, owner: Owner, session_id: str, *, offset: int = 0, limit: int) -> SessionTasks | None:
        """As `SessionViews.tasks`. Raises ViewsUnavailable."""
        return await self._asked(SessionViews(self._there()).tasks(owner, session_id, offset=offset, limit=limit))

    async def checkpoint(self) -> int:
        """The last sequence that is in them. Raises ViewsUnavailable."""
        return await self._views().checkpoint()

    async def reach(self, sequence: int) -> None:
        """Return once they hold the log up to this sequence. Raises ViewsUnavailable, also where it takes long."""
        views = self._views()
        try:
            async with asyncio.timeout(REACH_S):
                while await views.checkpoint() < sequence:  # noqa: ASYNC110  # another process carries them
                    await asyncio.sleep(LOOK_S)
        except ViewsUnavailable as error:
            raise self._refusal(error) from error
        except TimeoutError as error:
            raise ViewsUnavailable("the views are behind the log") from error

    async def close(self) -> None:
        """Read no more."""
        if self._database is not None:
            await self._database.close()

    def _views(self) -> Views:
        return Views(self._there())

    def _there(self) -> Database:
        if self._database is None:
            raise ViewsUnavailable(NONE_KEPT)
        return self._database

    async def _asked(self, question: Awaitable[Answer]) -> Answer:
        try:
            return await question
        except ViewsUnavailable as error:
            raise self._refusal(error) from error

    def _refusal(self, error: ViewsUnavailable) -> ViewsUnavailable:
        """What a client is told; the database's address and its words are for whoever is on call."""
        if self._seldom.due(str(error)):
            log.warning("views.not_readable", error=str(error))
        return ViewsUnavailable(NOT_NOW)


class Carrier:
    """Carries the views whenever no other projector does."""

    def __init__(self, log_settings: LogSettings, views_url: str) -> None:
        self._log_settings = log_settings
        self._views_url = views_url
        self._projector: Projector | None = None

    @property
    def position(self) -> int | None:
        """The last sequence that is in the views; None: another projector carries them, or nobody."""
        return None if self._projector is None else self._projector.position

    @property
    def carries(self) -> bool:
        """Whether it carries them now: it leads, and the database lets it."""
        return self._projector is not None and self._projector.well

    async def run(self) -> None:
        """Until cancelled."""
        await hold_office(self._log_settings, OFFICE, self._carry)

    async def _carry(self, _: Connection, event_log: JetStreamLog, election: Election) -> None:
        database = Database.open(self._views_url)
        projector = self._projector = Projector(event_log, database, leading=lambda: election.leading)
        try:
            await projector.run()
        finally:
            self._projector = None
            await projector.close()
            await database.close()
