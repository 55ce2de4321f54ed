"""The projector process: a dispatcher and the carriers of views and checkpoints; each works whenever it is elected."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import structlog

import app.checkpoints
import app.views
from app.audit_key import audit_key
from app.dispatcher import AGAIN_S, Dispatcher
from app.metrics import Metrics
from app.settings import AgentSettings, AuditSettings, LogSettings, WorkerSettings
from app.tasks import Tasks
from eventstore.connection import Connection
from eventstore.election import Election
from eventstore.figures import telling
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError
from eventstore.queue import Queue
from eventstore.timers import Timers
from projections.database import Database
from projections.views import Views
from projections.views_errors import ViewsUnavailable

log = structlog.stdlib.get_logger()


async def run_projector(
    log_settings: LogSettings,
    agents: AgentSettings,
    worker: WorkerSettings,
    limits: dict[str, int] | None = None,
    views_url: str | None = None,
    signing: AuditSettings | None = None,
) -> None:
    """Carry the projections until cancelled: the dispatcher, the views where they have a database, the checkpoints
    where they have a key.

    Raises LogUnavailable, ServerTooOld, BadKey at the start.
    """
    views = None if views_url is None else app.views.Carrier(log_settings, views_url)
    signer = None
    if signing is not None and signing.key is not None:
        signer = app.checkpoints.Carrier(log_settings, audit_key(signing.key), signing.every_s)
    opened = _opened(log_settings, agents, worker, limits or {}, views_url)
    async with opened as (dispatcher, election, tasks):
        carrying: list[asyncio.Task[None]] = []
        if views is not None:
            _show_views(tasks, views)
            carrying.append(asyncio.create_task(views.run()))
        if signer is not None:
            _show_checkpoints(tasks, signer)
            carrying.append(asyncio.create_task(signer.run()))
        try:
            while True:
                await election.campaign()
                await _until_first(dispatcher.lead(), election.deposed())
                log.warning("dispatcher.deposed")
        finally:
            for one in carrying:
                one.cancel()
            if carrying:
                await asyncio.wait(carrying)


@asynccontextmanager
async def _opened(
    log_settings: LogSettings,
    agents: AgentSettings,
    worker: WorkerSettings,
    limits: dict[str, int],
    views_url: str | None,
) -> AsyncGenerator[tuple[Dispatcher, Election, Tasks]]:
    """Connect, and create the streams that are missing. Raises LogUnavailable, ServerTooOld."""
    connection = await Connection.open(log_settings.nats, "tasktrail-projector")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        replicas = log_settings.replicas
        room = log_settings.max_bytes
        event_log = await JetStreamLog.open(connection, max_bytes=room, replicas=replicas, joins=log_settings.joins)
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
        await stack.enter_async_context(telling(connection, tasks.metrics.instance, dispatcher.told))
        yield dispatcher, election, tasks


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


def _show_views(tasks: Tasks, carrier: app.views.Carrier) -> None:
    tail, metrics = tasks.tail, tasks.metrics

    def lag() -> dict[tuple[str, ...], float]:
        position = carrier.position
        return {} if position is None else {(): max(0, tail.position + tail.lag - position)}

    metrics.gauge(
        "views_carried",
        "1: this projector carries the views; 0: it stands by, or their database is away or spoilt",
        lambda: carrier.carries,
    )
    # By the dispatcher's tail, which goes on while the views' database is away.
    metrics.gauge_by("views_lag_records", "Records of the log that the views do not have yet", (), lag)


def _show_checkpoints(tasks: Tasks, carrier: app.checkpoints.Carrier) -> None:
    def unsigned() -> dict[tuple[str, ...], float]:
        return {} if carrier.unsigned is None else {(): carrier.unsigned}

    tasks.metrics.gauge_by("unsigned_records", "Records of the log that no checkpoint covers yet", (), unsigned)


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
