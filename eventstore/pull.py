"""Messages taken one at a time from a work-queue stream, each ours for a lease: what the queue and the timers rest on.

A holder who is late by its own clock says nothing more: the server takes a late ack for the next holder's.
"""

import asyncio
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Generic, TypeVar

import msgspec
import structlog
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from eventstore.connection import Connection, RefusedByServer, checked
from eventstore.log import BadSubject, LogUnavailable
from eventstore.stream import Stream

log = structlog.stdlib.get_logger()

GOOD_FOR: Final = 2 / 3
"""The part of a lease for which its holder trusts it after the last thing that the server confirmed."""
SLACK_S: Final = 1.0
"""How much longer than asked for the server's "nothing there" may take."""
PAUSE_S: Final = 0.1
MAX_HELD: Final = 10_000
"""Unfinished messages that the server allows per consumer; the limit that counts is the dispatcher's."""


class Gone(LogUnavailable):
    """The stream or the consumer is not there (deleted, say): create it again."""


class Delivery:
    """A message that is ours until our own clock says that it may be someone else's; from then on it stays so.

    Counted from `taken_at`, the monotonic time before the server can have delivered it. Safe to use from two threads.
    """

    def __init__(self, connection: Connection, msg: Msg, taken_at: float, lease: timedelta) -> None:
        self.payload = msg.data
        self.taken_at = taken_at
        self.lease = lease
        self.deliveries = msg.metadata.num_delivered
        self._connection = connection
        self._reply = msg.reply
        self._good_until = taken_at + lease.total_seconds() * GOOD_FOR
        self._over = False
        self._gate = threading.Lock()

    def alive(self) -> bool:
        """Whether it is certainly still ours."""
        return not self._over and time.monotonic() < self._good_until

    def drop(self) -> None:
        """Nothing is sent for it ever again: no ack, no nak, no heartbeat."""
        with self._gate:
            self._over = True

    async def finish(self) -> bool:
        """Take it off the queue. False: we were late, or the server did not confirm; it may come to someone again."""
        if not self._end():
            return False
        while (left_s := self._good_until - time.monotonic()) > 0:
            # While disconnected, the client would keep the ack and send it when it is long late.
            if self._connection.connected:
                try:
                    await self._connection.request(self._reply, b"+ACK", timeout_s=min(left_s, 1.0))
                    return True
                except LogUnavailable:
                    log.debug("queue.ack_unconfirmed")
            await asyncio.sleep(PAUSE_S)
        return False

    async def give_back(self) -> None:
        """Let another taker have it at once (a nak without delay: one with delay would hold its slot)."""
        if self._end() and self._connection.connected:
            await self._connection.publish(self._reply, b"-NAK")

    async def beat(self, connection: Connection, answer_to: str) -> bool:
        """Tell the server that we still work on it. False: it is over, nothing was sent. Raises LogUnavailable."""
        # The gate is held while sending, so that no beat leaves after `drop` has returned: it would keep a dead
        # holder's item from everyone, or the next holder's alive after its death.
        with self._gate:
            if not self.alive():
                self._over = True
                return False
            await connection.publish(self._reply, b"+WPI", reply=answer_to)
            return True

    def confirmed(self, sent_at: float) -> None:
        """The server answered a beat that was sent at this monotonic time."""
        if self.alive():
            self._good_until = max(self._good_until, sent_at + self.lease.total_seconds() * GOOD_FOR)

    def _end(self) -> bool:
        with self._gate:
            ours = self.alive()
            self._over = True
        return ours


Taken = TypeVar("Taken", bound=Delivery)


class WorkStream:
    """A stream with work-queue retention, which is created again where it is gone."""

    def __init__(self, connection: Connection, name: str, config: dict[str, object]) -> None:
        self.connection = connection
        self.name = name
        self._stream = Stream(connection, name)
        # No publish here relies on deduplication; a long window would only hold message ids in the server's memory.
        defaults = {"retention": "workqueue", "storage": "file", "duplicate_window": nanoseconds(PAUSE_S)}
        self._config = defaults | config

    async def ensure(self) -> None:
        """Create the stream, or update it. Raises RefusedByServer, LogUnavailable."""
        await self._stream.ensure(self._config)

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Acknowledged. Raises LogUnavailable: not stored, as far as we know."""
        if not self.connection.connected:
            raise LogUnavailable("disconnected")
        try:
            try:
                await self._publish(subject, payload, headers)
            except LogUnavailable as error:
                if not isinstance(error.__cause__, NoRespondersError):
                    raise
                await self.ensure()
                await self._publish(subject, payload, headers)
        except RefusedByServer as error:
            raise LogUnavailable(str(error)) from error

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        answer = await self.connection.request(subject, payload, headers=headers)
        checked(subject, answer.data)


class Taker(Generic[Taken]):
    """Takes messages of one subject, one at a time, from a durable consumer that is created again where it is gone."""

    def __init__(
        self,
        stream: WorkStream,
        consumer: str,
        subject: str,
        lease: timedelta,
        make: Callable[[Connection, Msg, float, timedelta], Taken],
    ) -> None:
        self._stream = stream
        self._connection = stream.connection
        self._name = consumer
        self._subject = subject
        self._lease = lease
        self._make = make
        self._made = False
        self._answers: set[asyncio.Future[Msg]] = set()
        self._running: set[asyncio.Task[Taken | None] | asyncio.Task[None]] = set()
        # The server forgets waiting pulls when it dies: don't wait for what can't come.
        self._connection.on_reconnected(self._forget_pulls)

    async def take(self, wait_s: float) -> Taken | None:
        """The next message; None: none came in time. Raises LogUnavailable where the server was away at the end."""
        until = time.monotonic() + wait_s
        while True:
            trouble: LogUnavailable | None = None
            try:
                if not self._made:
                    async with asyncio.timeout(max(0.0, until - time.monotonic()) + SLACK_S):
                        await self._create()
                if taken := await self._next(until - time.monotonic()):
                    return taken
            except LogUnavailable as error:
                self._made = self._made and not isinstance(error, Gone)
                trouble = error
            except (RefusedByServer, TimeoutError) as error:
                trouble = LogUnavailable(str(error) or "no answer in time")
            if time.monotonic() >= until:
                if trouble is not None:
                    raise trouble
                return None
            if trouble is not None:
                await asyncio.sleep(PAUSE_S)

    async def close(self) -> None:
        """For when nobody takes any more; what still arrives goes back."""
        self._forget_pulls()
        while self._running:
            await asyncio.wait(self._running)

    async def _create(self) -> None:
        config = {
            "name": self._name,
            "durable_name": self._name,
            "filter_subject": self._subject,
            "ack_policy": "explicit",
            "ack_wait": nanoseconds(self._lease.total_seconds()),
            "max_deliver": -1,
            "max_ack_pending": MAX_HELD,
            "max_waiting": MAX_HELD,
        }
        call = f"CONSUMER.CREATE.{self._stream.name}.{self._name}.{self._subject}"
        body = {"stream_name": self._stream.name, "config": config}
        await self._stream.ensure()
        await self._connection.api(call, body)
        self._made = True

    async def _next(self, left_s: float) -> Taken | None:
        # A pull is a task of its own: a take that is cancelled while the server delivers loses nothing.
        pull = asyncio.create_task(self._pull(left_s))
        self._running.add(pull)
        pull.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(pull)
        except asyncio.CancelledError:
            pull.add_done_callback(self._give_back)
            raise

    async def _pull(self, left_s: float) -> Taken | None:
        if not self._connection.connected:
            raise LogUnavailable("disconnected")
        # The lease counts from here, before the server can have delivered: so no pull lasts for much of a lease.
        taken_at = time.monotonic()
        expires_s = min(max(left_s, 0.05), self._lease.total_seconds() / 3)
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        async def on_message(msg: Msg) -> None:
            if not answer.done():
                answer.set_result(msg)

        inbox = self._connection.new_inbox()
        subscription = await self._connection.subscribe(inbox, on_message)
        self._answers.add(answer)
        try:
            request = msgspec.json.encode({"batch": 1, "expires": nanoseconds(expires_s)})
            call = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{self._name}"
            await self._connection.publish(call, request, reply=inbox)
            return await self._read(await asyncio.wait_for(answer, expires_s + SLACK_S), taken_at)
        except TimeoutError as error:
            raise LogUnavailable(f"no answer to a pull within {expires_s + SLACK_S:.1f} s") from error
        finally:
            self._answers.discard(answer)
            await self._connection.unsubscribe(subscription)

    async def _read(self, msg: Msg, taken_at: float) -> Taken | None:
        headers = msg.headers or {}
        status = "" if msg.reply else headers.get("Status", "")
        said = f"{self._stream.name}: {status} {headers.get('Description', '')}"
        if status in ("404", "408"):  # nothing there in time
            return None
        if status == "503" or (status == "409" and "Deleted" in said):
            raise Gone(said)
        if status:  # a new leader, a shutdown: ask again
            raise LogUnavailable(said)
        try:
            taken = self._make(self._connection, msg, taken_at, self._lease)
        except msgspec.MsgspecError as error:
            log.error("queue.unreadable_message", subject=msg.subject, error=str(error))
            await Delivery(self._connection, msg, taken_at, self._lease).finish()
            return None
        # This process may have been stopped while the message waited: then the lease is someone else's by now.
        return taken if taken.alive() else None

    def _give_back(self, pull: asyncio.Task[Taken | None]) -> None:
        if not pull.cancelled() and pull.exception() is None and (taken := pull.result()) is not None:
            returning = asyncio.create_task(taken.give_back())
            self._running.add(returning)
            returning.add_done_callback(self._running.discard)

    def _forget_pulls(self) -> None:
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(LogUnavailable("the connection was lost meanwhile"))


def checked_word(pattern: re.Pattern[str], word: str) -> str:
    """The word, if it may become part of a subject. Raises BadSubject."""
    if not pattern.fullmatch(word):
        raise BadSubject(f"{word[:80]!r} may not be part of a subject")
    return word


def nanoseconds(seconds: float) -> int:
    """As JetStream's configurations count time."""
    return round(seconds * 1e9)
