"""Offices of the deployment: work that one process does at a time, whatever log and database do meanwhile.

Each on a connection of its own: what is read fast there must not keep the dispatcher's heartbeats waiting.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from app.settings import LogSettings
from eventstore.connection import Connection
from eventstore.election import Election
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError
from projections.views_errors import ViewsError

log = structlog.stdlib.get_logger()

AGAIN_S = 1.0

Serve = Callable[[Connection, JetStreamLog, Election], Awaitable[None]]


async def hold_office(log_settings: LogSettings, office: str, serve: Serve) -> None:
    """Serve whenever we are elected to it, until cancelled. `serve` returns when it leads no more."""
    while True:
        try:
            async with _opened(log_settings, office) as (connection, event_log, election):
                while True:
                    await election.campaign()
                    await serve(connection, event_log, election)
        except (LogError, ViewsError, OSError) as error:
            log.warning("office.not_yet", office=office, error=str(error))
        except Exception:
            # A bug of ours here is no reason for the dispatcher, which shares our process, to stop.
            log.exception("office.failed", office=office)
        await asyncio.sleep(AGAIN_S)


@asynccontextmanager
async def _opened(log_settings: LogSettings, office: str) -> AsyncGenerator[tuple[Connection, JetStreamLog, Election]]:
    connection = await Connection.open(log_settings.nats, f"tasktrail-{office}")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        replicas = log_settings.replicas
        event_log = await JetStreamLog.open(connection, max_bytes=log_settings.max_bytes, replicas=replicas)
        stack.push_async_callback(event_log.close)
        election = await Election.open(connection, office, replicas=replicas)
        stack.push_async_callback(election.close)
        yield connection, event_log, election
