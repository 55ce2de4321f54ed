"""One connection to NATS, and requests to the JetStream API, with our errors instead of the client's."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import ParseResult

import msgspec
import nats.errors
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from eventstore.client import StraightClient, Take
from eventstore.log import LogError, LogUnavailable

log = structlog.stdlib.get_logger()

OLDEST_SERVER = (2, 12, 0)
RECONNECT_EVERY_S = 0.1
PING_EVERY_S = 5
LET_GO_AFTER_S = 1.0
READ_BYTES = 256 * 1024


class NatsAddress(Struct, frozen=True, kw_only=True):
    """Where NATS is and who we are there. `url` may be a comma list and may hold user and password."""

    url: str
    creds: Path | None = None
    ca: Path | None = None


class RefusedByServer(LogError):
    """JetStream answered with an error. `err_code` tells which (10059: no such stream, say)."""

    def __init__(self, subject: str, err_code: int, description: str) -> None:
        super().__init__(f"{subject}: {description} ({err_code})")
        self.err_code = err_code
        self.description = description


class ServerTooOld(LogError):
    """The nats-server is older than 2.12, which brought scheduled messages."""


class _Wire(TcpTransport):
    """nats-py's transport, but letting go of it needs no peer: a server that stands still would otherwise keep the
    client from closing, and from reconnecting elsewhere, for as long as it does; a dead one makes `close` raise."""

    leaving = False

    def __bool__(self) -> bool:
        return True  # else nats-py puts one of its own in our place

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        # Where an attempt failed half-way, the client forgets its connection, which then stays open.
        self.close()
        await super().connect(uri, READ_BYTES, connect_timeout)

    async def read(self, buffer_size: int) -> bytes:
        # Acknowledgements and the tail's records come by the thousand; nats-py's 32 KiB held the socket up for each.
        return await super().read(READ_BYTES)

    async def drain(self) -> None:
        if not self.leaving:
            await super().drain()

    async def wait_closed(self) -> None:
        try:
            async with asyncio.timeout(LET_GO_AFTER_S):
                await super().wait_closed()
        except TimeoutError:
            if self._io_writer is not None:
                self._io_writer.transport.abort()


class Connection:
    """A connection that comes back by itself. Pings every 5 s: a stopped server is noticed, not waited for."""

    def __init__(self, client: StraightClient) -> None:
        self.client = client
        self._wire = _Wire()
        self._drop_logged_at = 0.0
        self._on_reconnected: list[Callable[[], None]] = []
        self._on_disconnected: list[Callable[[], None]] = []
        self._closing = False

    @classmethod
    async def open(cls, address: NatsAddress, name: str, *, within_s: float = 5.0) -> "Connection":
        """Connect. Raises LogUnavailable when nothing answers in time, ServerTooOld."""
        client = StraightClient()
        connection = cls(client)
        if not address.url.startswith("ws"):
            client._transport = connection._wire  # pyright: ignore[reportPrivateUsage]  # there is no other way in
        tls = ssl.create_default_context(cafile=str(address.ca)) if address.ca else None
        connecting = client.connect(
            servers=address.url.split(","),
            name=name,
            error_cb=connection._on_error,
            disconnected_cb=connection._disconnected,
            reconnected_cb=connection._reconnected,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_EVERY_S,  # pyright: ignore[reportArgumentType]  # typed int, works as float
            ping_interval=PING_EVERY_S,
            max_outstanding_pings=2,
            connect_timeout=2,
            pending_size=64 * 1024 * 1024,
            user_credentials=str(address.creds) if address.creds else None,
            tls=tls,
        )
        try:
            async with asyncio.timeout(within_s):
                await connecting
        except (nats.errors.Error, OSError) as error:
            # The client goes on trying for ever, so time is what ran out; its last error says why.
            why = client.last_error or error
            reason = str(why) or type(why).__name__
            await connection.close()
            raise LogUnavailable(f"no NATS at {hidden(address.url)} within {within_s:g} s: {reason}") from error
        version = client.connected_server_version
        if (version.major, version.minor, version.patch) < OLDEST_SERVER:
            await client.close()
            raise ServerTooOld(f"nats-server {version} at {hidden(address.url)} is older than 2.12")
        return connection

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now, as far as the client knows."""
        return self.client.is_connected

    def on_reconnected(self, call: Callable[[], None]) -> None:
        """Have this called after each reconnect, until `off_reconnected`."""
        self._on_reconnected.append(call)

    def off_reconnected(self, call: Callable[[], None]) -> None:
        """Have it called no more; nothing happens where it was not."""
        with suppress(ValueError):
            self._on_reconnected.remove(call)

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float = 2.0, headers: dict[str, str] | None = None
    ) -> Msg:
        """One request, one answer. Raises LogUnavailable where none comes in time."""
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        try:
            answer = await self.client.request(subject, payload, timeout=timeout_s, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise LogUnavailable(f"{subject}: {str(error) or type(error).__name__}") from error
        if task and task.cancelling() > cancellations:
            # Before Python 3.12 wait_for, which nats-py uses, swallows a cancellation that meets the answer.
            raise asyncio.CancelledError
        return answer

    async def api(self, call: str, body: object = None, *, timeout_s: float = 2.0) -> dict[str, object]:
        """A request to `$JS.API.<call>`; the leader answers. Raises RefusedByServer, LogUnavailable."""
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = await self.request(f"$JS.API.{call}", payload, timeout_s=timeout_s)
        return checked(call, answer.data)

    async def publish(
        self, subject: str, payload: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Send, unacknowledged. Raises LogUnavailable where it can't be buffered, or is more than the server takes."""
        size = len(payload) + (_size_of(headers) if headers else 0)
        if size > self.client.max_payload:
            # nats-py looks at the payload alone; the server would end the connection, for good.
            raise LogUnavailable(f"{subject}: {size} bytes are more than the server takes")
        try:
            await self.client.publish(subject, payload, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise LogUnavailable(f"{subject}: {str(error) or type(error).__name__}") from error

    def put(self, subject: str, reply: str, head: bytes, payload: bytes) -> bool:
        """Send, without waiting, with these headers as they are on the wire. False: it can't be taken now."""
        return self.client.put(subject, reply, head, payload)

    async def subscribe(self, subject: str, on_message: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Have messages on a subject, each in its turn. Raises LogUnavailable."""
        return await self._subscribed(subject, on_message)

    async def take(self, subject: str, take: Take) -> Subscription:
        """Have messages on a subject as they are read from the socket: `take` must not raise, nor take long. Raises
        LogUnavailable."""
        subscription = await self._subscribed(subject)
        self.client.straight(subscription, take)
        return subscription

    async def _subscribed(
        self, subject: str, on_message: Callable[[Msg], Awaitable[None]] | None = None
    ) -> Subscription:
        try:
            return await self.client.subscribe(subject, cb=on_message)  # pyright: ignore[reportUnknownMemberType]  # nats-py: a bare Future
        except (nats.errors.Error, OSError) as error:
            raise LogUnavailable(f"{subject}: {str(error) or type(error).__name__}") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Stop; also where the connection is gone."""
        self.client.forget(subscription)
        try:
            await subscription.unsubscribe()
        except nats.errors.Error:
            log.debug("nats.unsubscribe_failed", subject=subscription.subject)

    def new_inbox(self) -> str:
        """A subject that only this client knows."""
        return self.client.new_inbox()

    async def close(self) -> None:
        """Flush what is buffered, if there is a connection, and close."""
        self._closing = True
        try:
            if self.client.is_connected:
                await self.client.flush(timeout=2)
        except (nats.errors.Error, TimeoutError):
            log.debug("nats.flush_failed")
        self._wire.leaving = True
        await self.client.close()

    async def _on_error(self, error: Exception) -> None:
        # nats-py would print a traceback for each failed attempt to reconnect, ten a second.
        if isinstance(error, nats.errors.SlowConsumerError):
            self._dropped(error.sub)
        elif self.client.is_connected and not isinstance(error, ConnectionError | nats.errors.StaleConnectionError):
            log.warning("nats.error", error=str(error) or type(error).__name__)

    def _dropped(self, subscription: Subscription) -> None:
        # There is one call for each message; a burst's are one line.
        if time.monotonic() - self._drop_logged_at > 1.0:
            self._drop_logged_at = time.monotonic()
            log.warning("nats.messages_dropped", subject=subscription.subject)

    async def _disconnected(self) -> None:
        if not self._closing:
            log.warning("nats.disconnected")

    async def _reconnected(self) -> None:
        log.info("nats.reconnected")
        for call in list(self._on_reconnected):
            call()


def checked(call: str, answer: bytes) -> dict[str, object]:
    """A JetStream answer. Raises RefusedByServer (an error reply carries `"seq": 0` too: `error` is what tells)."""
    body = msgspec.json.decode(answer, type=dict[str, object])
    error = body.get("error")
    if error is not None:
        fault = msgspec.convert(error, type=dict[str, object])
        raise RefusedByServer(call, int(str(fault.get("err_code", 0))), str(fault.get("description", "")))
    return body


def _size_of(headers: dict[str, str]) -> int:
    """What nats-py makes of them on the wire: `NATS/1.0`, a line each, an empty one."""
    return 12 + sum(len(name) + len(value) + 4 for name, value in headers.items())


def hidden(url: str) -> str:
    """The URL without user and password, for people and logs."""
    return ",".join(one.rpartition("@")[2] if "@" in one else one.split("//")[-1] for one in url.split(","))
