"""The rooms of one API process, wired together: connect, follow, and on the way out let what is in flight end."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.agents.catalogue import Catalogue
from app.audit_feed import AuditFeeds
from app.auth import Bearers, Revocations
from app.bounds import Bounds
from app.dialects.niyra_calls import Calls
from app.dialects.niyra_mcp_door import McpDoor
from app.limits import Limits
from app.metrics import Metrics
from app.oauth import Issuer
from app.settings import HttpSettings, LogSettings
from app.streams import Streams
from app.tasks import Tasks
from app.views import Lists
from eventstore.connection import Connection
from eventstore.figures import Figures, asking, telling
from eventstore.jetstream import JetStreamLog
from eventstore.switches import Switches
from eventstore.tokens import Tokens


class Rooms:
    """What the API is made of."""

    def __init__(
        self,
        *,
        connection: Connection,
        tasks: Tasks,
        tokens: Tokens,
        switches: Switches,
        catalogue: Catalogue,
        http: HttpSettings,
        figures: Figures,
        lists: Lists,
        limits: Limits,
    ) -> None:
        self.lists = lists
        self.limits = limits
        self.connection = connection
        self.figures = figures
        self.tasks = tasks
        self.tokens = tokens
        self.switches = switches
        self.bearers = Bearers(tokens, None if http.oauth is None else Issuer(http.oauth))
        self.catalogue = catalogue
        self.http = http
        self.metrics = tasks.metrics
        self.calls = Calls(tasks=tasks, lists=lists, catalogue=catalogue, http=http)
        self.mcp = McpDoor(self.calls, limits, http)
        self.streams = Streams(max_bytes=http.max_stream_bytes, ping_s=http.ping_s, per_token=http.streams_per_token)
        self.bounds = Bounds(http)
        self.feeds = AuditFeeds(tasks.log, max_feeds=http.max_audit_feeds)
        self.revocations = Revocations(tokens)
        self.metrics.gauge("audit_feeds", "Readers of the audit feed", lambda: self.feeds.open)
        held = "Bytes that requests hold or have room for, by what they are"
        bounds = {("bodies",): self.bounds.bodies, ("answers",): self.bounds.answers}
        self.metrics.gauge_by("held_bytes", held, ("of",), lambda: {of: one.held for of, one in bounds.items()})
        self.metrics.gauge("nats_connected", "1: this process is connected to NATS", lambda: connection.connected)

    @property
    def problems(self) -> list[str]:
        """Why this process is not ready; none: the log can be reached, and it has seen what that holds."""
        problems: list[str] = []
        if not self.connection.connected:
            problems.append("no connection to the log")
        if not self.tasks.tail.proven:
            problems.append("not proven to have seen all of the log")
        return problems

    def drain(self) -> None:
        """Let nobody wait for what this process would say later."""
        self.streams.drain()
        self.tasks.leave()


@asynccontextmanager
async def open_rooms(
    log_settings: LogSettings, http: HttpSettings, catalogue: Catalogue, views_url: str | None = None
) -> AsyncGenerator[Rooms]:
    """Connect and follow the log; on the way out, let appends in flight end. Raises LogUnavailable, ServerTooOld."""
    lists = Lists(views_url)
    connection = await Connection.open(log_settings.nats, "tasktrail-api")
    try:
        event_log = await JetStreamLog.open(
            connection,
            max_bytes=log_settings.max_bytes,
            replicas=log_settings.replicas,
            joins=log_settings.joins,
        )
        tokens = await Tokens.open(connection, replicas=log_settings.replicas)
        switches = await Switches.open(connection, replicas=log_settings.replicas)
        tasks = await Tasks.open(
            event_log,
            Metrics("api"),
            None if views_url is None else lists.task,
            strict_reads=http.reads == "strict",
            max_attached=http.max_attached,
        )
        try:
            metrics = tasks.metrics
            limits = Limits(http.limits, metrics)
            async with (
                asking(connection) as figures,
                telling(connection, metrics.instance, metrics.told),
                limits.shared(connection, metrics.instance),
            ):
                rooms = Rooms(
                    connection=connection,
                    tasks=tasks,
                    tokens=tokens,
                    switches=switches,
                    catalogue=catalogue,
                    http=http,
                    figures=figures,
                    lists=lists,
                    limits=limits,
                )
                try:
                    async with rooms.mcp.run():
                        yield rooms
                finally:
                    await rooms.bearers.close()
        finally:
            await tasks.close()
            await switches.close()
            await tokens.close()
            await event_log.close()
    finally:
        await lists.close()
        await connection.close()
