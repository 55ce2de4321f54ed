"""Appends with an expected sequence: begun at once, repeated until their outcome is known."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import msgspec
import structlog

from eventstore import codec
from eventstore.client import Delivery
from eventstore.connection import Connection
from eventstore.log import LogError, LogFull, LogUnavailable, OutcomeUnknown, WrongExpectedSequence, task_of_subject
from eventstore.stream import Ack, Expected, Stream

log = structlog.stdlib.get_logger()

# The one place that knows these numbers. 10164 comes on replicated streams: it carries no sequence, and may concern an
# append that never lands.
CONFLICT = frozenset({10071, 10164})
NO_ROOM = frozenset({10047, 10077, 10023})
"""No room on the disk or in the account; maximum bytes exceeded; insufficient resources."""
WINDOW = 1024
"""Appends in flight at most; more wait their turn."""
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_HEAD = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n\r\n"

OnEnd = Callable[[int | LogError], None]


class Append:
    """One append: what, where, after which sequence; until when it is insisted on."""

    __slots__ = ("expected", "record_id", "stored", "subject", "until")

    def __init__(self, subject: str, record_id: str, stored: bytes, expected: int, until: float) -> None:
        self.subject = subject
        self.record_id = record_id
        self.stored = stored
        self.expected = expected
        self.until = until


class Flight:
    """An append that was sent once. Its acknowledgement ends it; whatever else comes, or nothing, is seen to."""

    __slots__ = ("_appender", "append", "on_end", "token", "worth_waiting_until")

    def __init__(self, appender: "Appender", append: Append, token: str, until: float, on_end: OnEnd) -> None:
        self._appender = appender
        self.append = append
        self.token = token
        self.worth_waiting_until = until
        self.on_end = on_end

    def __call__(self, msg: Delivery) -> None:
        """Its answer, as the stream's inbox has it."""
        self._appender.heard(self, msg)


class Appender:
    """Appends to one stream. `close` it last: what is in flight then is of unknown outcome."""

    def __init__(self, connection: Connection, stream: Stream, *, patience_s: float) -> None:
        self._connection = connection
        self._stream = stream
        self._patience_s = patience_s
        self._attempt_s = min(1.0, patience_s / 2)
        self._window = asyncio.Semaphore(WINDOW)
        self._waiting: set[Expected] = set()
        self._flights: dict[str, Flight] = {}
        self._settling: set[asyncio.Task[int]] = set()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._reconnected = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        connection.on_reconnected(self._wake)

    def begin(self, subject: str, record_id: str, stored: bytes, expected: int, on_end: OnEnd) -> bool:
        """Send it, and tell `on_end` later, once, how it ended: its sequence, or what `append` would raise. No task is
        made for it, nor a timer: that would cost as much again. False: not now, for it would have to wait."""
        if self._closed or len(self._flights) + len(self._settling) >= WINDOW:
            return False
        now = time.monotonic()
        append = Append(subject, record_id, stored, expected, now + self._patience_s)
        flight = Flight(self, append, self._stream.new_token(), now + self._attempt_s, on_end)
        if not self._send(flight):
            return False
        self._flights[flight.token] = flight
        if self._timer is None:
            self._timer = self._loop.call_later(self._attempt_s, self._look)
        return True

    async def append(self, subject: str, record_id: str, stored: bytes, expected: int) -> int:
        """Its sequence. An append whose acknowledgement does not come is repeated, with the same bytes and expectation,
        until it is acknowledged or in conflict; the record after the expected one then tells whose it is.

        Raises WrongExpectedSequence, OutcomeUnknown, LogUnavailable, LogFull.
        """
        async with self._window:
            append = Append(subject, record_id, stored, expected, time.monotonic() + self._patience_s)
            with self._stream.expect(self._attempt_s) as waiting:
                return await self._insist(append, waiting, None, sent=False)

    def heard(self, flight: Flight, msg: Delivery) -> None:
        """What JetStream answers to what was sent."""
        try:
            ack = self._stream.read_ack(msg)
        except (LogUnavailable, msgspec.DecodeError):
            ack = None
        if ack is None or ack.err_code:
            self._settle(flight, ack)
            return
        self._land(flight)
        self._tell(flight, ack.sequence)

    async def close(self) -> None:
        """Wait for nothing any more."""
        self._closed = True
        self._connection.off_reconnected(self._wake)
        if self._timer is not None:
            self._timer.cancel()
        for flight in list(self._flights.values()):
            self._land(flight)
            self._tell(flight, _cut_short(flight.append))
        for settling in self._settling:
            settling.cancel()
        if self._settling:
            await asyncio.wait(self._settling)

    def _send(self, flight: Flight) -> bool:
        """Put it on its way. False: not now."""
        append, reply = flight.append, self._stream.reply_of(flight.token)
        if not self._connection.put(append.subject, reply, EXPECTED_HEAD % append.expected, append.stored):
            return False
        self._stream.listen(flight.token, flight)
        return True

    def _land(self, flight: Flight) -> None:
        del self._flights[flight.token]
        self._stream.ignore(flight.token)

    def _look(self) -> None:
        """See to those from whom nothing was heard for too long; the oldest are first."""
        self._timer = None
        now = time.monotonic()
        for flight in list(self._flights.values()):
            if flight.worth_waiting_until > now:
                self._timer = self._loop.call_later(flight.worth_waiting_until - now, self._look)
                return
            self._settle(flight, None)

    def _settle(self, flight: Flight, said: Ack | None) -> None:
        """Go on with an append that was sent once, in a task of its own."""
        self._land(flight)
        settling = self._loop.create_task(self._settled(flight, said))
        self._settling.add(settling)
        # Told from here and not in there: what is cancelled before its first line never runs one.
        settling.add_done_callback(partial(self._tell_settled, flight))

    async def _settled(self, flight: Flight, said: Ack | None) -> int:
        # The same reply as before: the first attempt's late acknowledgement counts for the second.
        with self._stream.expect(self._attempt_s, token=flight.token) as waiting:
            return await self._insist(flight.append, waiting, said, sent=True)

    def _tell_settled(self, flight: Flight, settling: asyncio.Task[int]) -> None:
        self._settling.discard(settling)
        if settling.cancelled():
            self._tell(flight, _cut_short(flight.append))
            return
        error = settling.exception()
        if error is None:
            self._tell(flight, settling.result())
        elif isinstance(error, LogError):
            self._tell(flight, error)
        else:
            # A fault of ours: whoever waits would wait for ever, and keep its task locked.
            log.error("append.fault", subject=flight.append.subject, exc_info=error)
            self._tell(flight, _unknown(flight.append, f"{type(error).__name__}: {error}"))

    def _tell(self, flight: Flight, end: int | LogError) -> None:
        """How it ended. Whatever becomes of that there, others wait for theirs."""
        try:
            flight.on_end(end)
        except Exception:
            log.exception("append.end_not_taken", subject=flight.append.subject)

    async def _insist(self, append: Append, waiting: Expected, said: Ack | None, *, sent: bool) -> int:
        self._waiting.add(waiting)
        try:
            while (left_s := append.until - time.monotonic()) > 0:
                try:
                    if said is None:
                        if not self._connection.connected:
                            # What is published now is only kept by the client; repeated again and again it would pile
                            # up.
                            await self._wait_for_connection(left_s)
                            continue
                        sent = True
                        headers = {EXPECTED: str(append.expected)}
                        await self._connection.publish(
                            append.subject, append.stored, reply=waiting.reply, headers=headers
                        )
                        said = await waiting.ack(min(self._attempt_s, left_s))
                    heard, said = said, None
                    sequence = await self._judge(heard, append)
                except LogUnavailable:
                    sequence = None
                if sequence is not None:
                    return sequence
                await asyncio.sleep(random.uniform(0.02, 0.1))
        finally:
            self._waiting.discard(waiting)
        if not sent:
            raise LogUnavailable(f"no connection to the log within {self._patience_s:g} s; nothing was written")
        raise _unknown(append, f"no acknowledgement within {self._patience_s:g} s")

    async def _judge(self, ack: Ack, append: Append) -> int | None:
        """The sequence of our record; None: try again. Raises WrongExpectedSequence, LogFull, LogUnavailable."""
        if not ack.err_code:
            return ack.sequence
        subject, expected = append.subject, append.expected
        if ack.err_code in NO_ROOM:
            raise LogFull(ack.description)
        if ack.err_code not in CONFLICT:
            raise LogUnavailable(f"{subject}: {ack.description} ({ack.err_code})")
        after_expected = await self._stream.get(sequence=expected + 1, subject=subject)
        if after_expected is None:
            last = await self._stream.get(subject=subject)
            found = last.sequence if last is not None else 0
            if found < expected:
                raise WrongExpectedSequence(subject, expected, found)  # the log went back
            return None
        if codec.record_id_of(after_expected) == append.record_id:
            return after_expected.sequence
        raise WrongExpectedSequence(subject, expected, after_expected.sequence)

    async def _wait_for_connection(self, at_most_s: float) -> None:
        self._reconnected.clear()
        if self._connection.connected:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._reconnected.wait()

    def _wake(self) -> None:
        """The connection came back, so what was sent is worth repeating now."""
        self._reconnected.set()
        for waiting in self._waiting:
            waiting.wake()
        for flight in list(self._flights.values()):
            self._settle(flight, None)


def _unknown(append: Append, why: str) -> OutcomeUnknown:
    whose = task_of_subject(append.subject)
    return OutcomeUnknown(f"{append.subject}: {why}", task_id=whose[1] if whose else None)


def _cut_short(append: Append) -> OutcomeUnknown:
    return _unknown(append, "the log is closed")
