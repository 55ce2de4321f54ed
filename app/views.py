"""The views in this deployment: carried along the log by one projector, read by every API process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog

from app.settings import LogSettings
from eventstore.connection import Connection
from eventstore.election import Election
from eventstore.events import Owner
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError
from projections.database import Database, ViewsError, ViewsUnavailable
from projections.listing import Filter
from projections.projector import Projector
from projections.views import Count, Page, Views

log = structlog.stdlib.get_logger()

OFFICE = "views"
AGAIN_S = 1.0
NONE_KEPT = "this deployment keeps no views (--views-url), so there are no lists"
NOT_NOW = "the views are being built, or their database is away; tasks can be asked for one by one"


class Lists:
    """The views, for reading. Whatever is wrong with them, and where there are none, is a ViewsUnavailable."""

    def __init__(self, views_url: str | None) -> None:
        self._database = None if views_url is None else Database.open(views_url)

    async def page(self, owner: Owner, wanted: Filter, *, after: str | None, limit: int) -> Page:
        """As `Views.list`. Raises BadCursor, ViewsUnavailable."""
        views = self._views()
        try:
            return await views.list(owner, wanted, after=after, limit=limit)
        except ViewsUnavailable as error:
            raise _told(error) from error

    async def count(self, owner: Owner, wanted: Filter) -> Count:
        """As `Views.count`. Raises ViewsUnavailable."""
        views = self._views()
        try:
            return await views.count(owner, wanted)
        except ViewsUnavailable as error:
            raise _told(error) from error

    async def checkpoint(self) -> int:
        """The last sequence that is in them. Raises ViewsUnavailable."""
        return await self._views().checkpoint()

    async def close(self) -> None:
        """Read no more."""
        if self._database is not None:
            await self._database.close()

    def _views(self) -> Views:
        if self._database is None:
            raise ViewsUnavailable(NONE_KEPT)
        return Views(self._database)


def _told(error: ViewsUnavailable) -> ViewsUnavailable:
    """What a client is told; the database's address and its words are for whoever is on call."""
    log.warning("views.not_readable", error=str(error))
    return ViewsUnavailable(NOT_NOW)


async def carry_views(log_settings: LogSettings, views_url: str) -> None:
    """Carry the views whenever no other projector does, until cancelled, whatever log and database do meanwhile.

    On a connection of its own: what is read fast here must not keep the dispatcher's heartbeats waiting.
    """
    while True:
        try:
            async with _carrier(log_settings, views_url) as (election, event_log, database):
                while True:
                    await election.campaign()
                    await _carry(event_log, database, election)
        except (LogError, ViewsError, OSError) as error:
            log.warning("projector.not_yet", error=str(error))
        except Exception:
            # A bug of ours in the views is no reason for the dispatcher, which shares our process, to stop.
            log.exception("projector.failed")
        await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def _carrier(
    log_settings: LogSettings, views_url: str
) -> AsyncGenerator[tuple[Election, JetStreamLog, Database]]:
    connection = await Connection.open(log_settings.nats, "tasktrail-views")
    try:
        replicas = log_settings.replicas
        event_log = await JetStreamLog.open(connection, max_bytes=log_settings.max_bytes, replicas=replicas)
        try:
            database = Database.open(views_url)
            election = await Election.open(connection, OFFICE, replicas=replicas)
            try:
                yield election, event_log, database
            finally:
                await election.close()
                await database.close()
        finally:
            await event_log.close()
    finally:
        await connection.close()


async def _carry(event_log: JetStreamLog, database: Database, election: Election) -> None:
    projector = Projector(event_log, database, leading=lambda: election.leading)
    try:
        await projector.run()
    finally:
        await projector.close()
