"""The projector process: a dispatcher and a carrier of the views, each of which works whenever it is elected."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog

from app.dispatcher import AGAIN_S, Dispatcher
from app.metrics import Metrics
from app.settings import AgentSettings, LogSettings, WorkerSettings
from app.tasks import Tasks
from app.views import Carrier
from eventstore.connection import Connection
from eventstore.election import Election
from eventstore.figures import telling
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError
from eventstore.queue import Queue
from eventstore.timers import Timers
from projections.database import Database, ViewsUnavailable
from projections.views import Views

log = structlog.stdlib.get_logger()


async def run_projector(
    log_settings: LogSettings,
    agents: AgentSettings,
    worker: WorkerSettings,
    limits: dict[str, int] | None = None,
    views_url: str | None = None,
) -> None:
    """Carry the projections (the dispatcher, and the views where they have a database) until cancelled.

    Raises LogUnavailable, ServerTooOld at the start.
    """
    carrier = None if views_url is None else Carrier(log_settings, views_url)
    opened = _opened(log_settings, agents, worker, limits or {}, views_url, carrier)
    async with opened as (dispatcher, election):
        carrying = None if carrier is None else asyncio.ensure_future(carrier.run())
        try:
            while True:
                await election.campaign()
                await _until_first(dispatcher.lead(), election.deposed())
                log.warning("dispatcher.deposed")
        finally:
            if carrying is not None:
                carrying.cancel()
                await asyncio.wait({carrying})


@asynccontextmanager
async def _opened(
    log_settings: LogSettings,
    agents: AgentSettings,
    worker: WorkerSettings,
    limits: dict[str, int],
    views_url: str | None,
    carrier: Carrier | None,
) -> AsyncGenerator[tuple[Dispatcher, Election]]:
    """Connect, and create the streams that are missing. Raises LogUnavailable, ServerTooOld."""
    connection = await Connection.open(log_settings.nats, "tasktrail-projector")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        replicas = log_settings.replicas
        event_log = await JetStreamLog.open(connection, max_bytes=log_settings.max_bytes, replicas=replicas)
        stack.push_async_callback(event_log.close)
        tasks = await Tasks.open(event_log, Metrics("projector"))
        stack.push_async_callback(tasks.close)
        queue = await Queue.open(connection, lease=timedelta(seconds=worker.lease_s), replicas=replicas)
        stack.push_async_callback(queue.close)
        timers = await Timers.open(connection, replicas=replicas)
        stack.push_async_callback(timers.close)
        election = await Election.open(connection, "dispatcher", replicas=replicas)
        stack.push_async_callback(election.close)
        dispatcher = Dispatcher(
            connection,
            tasks,
            queue,
            timers,
            _views(views_url, stack),
            limits=limits,
            default_limit=agents.limit,
            sweep_s=worker.sweep_s,
        )
        if carrier is not None:
            _show_views(tasks, carrier)
        await stack.enter_async_context(telling(connection, tasks.metrics.instance, dispatcher.told))
        yield dispatcher, election


def _views(views_url: str | None, stack: AsyncExitStack) -> Views | None:
    """What the dispatcher begins with; the carrier, which tries again, says what is wrong where there is none."""
    if views_url is None:
        return None
    try:
        database = Database.open(views_url)
    except ViewsUnavailable:
        return None
    stack.push_async_callback(database.close)
    return Views(database)


def _show_views(tasks: Tasks, carrier: Carrier) -> None:
    tail, metrics = tasks.tail, tasks.metrics

    def lag() -> dict[tuple[str, ...], float]:
        position = carrier.position
        return {} if position is None else {(): max(0, tail.position + tail.lag - position)}

    metrics.gauge(
        "views_carried", "1: this projector carries the views; 0: it stands by", lambda: carrier.position is not None
    )
    # By the dispatcher's tail, which goes on while the views' database is away.
    metrics.gauge_by("views_lag_records", "Records of the log that the views do not have yet", (), lag)


async def _until_first(*works: Coroutine[object, object, None]) -> None:
    """Run until one of them ends; the rest are cancelled. A LogError is told in the log: it is tried again."""
    running = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for work in running:
            work.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(outcome, LogError):
                log.warning("dispatcher.log_away", error=str(outcome))
                await asyncio.sleep(AGAIN_S)
            elif isinstance(outcome, Exception):
                log.error("dispatcher.failed", exc_info=outcome)
                await asyncio.sleep(AGAIN_S)
