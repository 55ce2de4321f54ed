"""Appends that wait for each other: what comes while some are on their way goes together, as one atomic batch.

A server that forces each message to the disk before it acknowledges it does so once for a batch (ADR 50 of NATS).
"""

import secrets
from functools import partial

import msgspec

from eventstore.appender import Appender, Flight
from eventstore.client import Delivery
from eventstore.connection import Connection
from eventstore.log import LogUnavailable
from eventstore.stream import Stream

FROM = 25
"""Fewer go each by itself: a batch costs the server as much as some twenty syncs, however small it is."""
MOST = 500
"""A batch has at most 1,000 messages."""
MOST_BYTES = 4 * 1024 * 1024
HEAD = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\nNats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n"
COMMIT = b"Nats-Batch-Commit: 1\r\n"


class JoiningAppender(Appender):
    """While a batch is on its way, or FROM by themselves, what comes waits, and goes together.

    The server looks at each message's expectation when it commits, and takes all or none. Where it takes none, or does
    not answer, each goes on by itself, as after any answer that did not come: same bytes, same expectation. So a batch
    that was taken after all doubles nothing, and one conflict costs the others a round, never their place.
    """

    def __init__(self, connection: Connection, stream: Stream, *, patience_s: float) -> None:
        super().__init__(connection, stream, patience_s=patience_s)
        self._queue: list[Flight] = []
        self._alone: set[str] = set()
        self._batch: str | None = None
        self._called = False

    def _send(self, flight: Flight) -> bool:
        if not self._connection.connected:
            return False
        self._queue.append(flight)
        self._go_on()
        return True

    def _land(self, flight: Flight) -> None:
        super()._land(flight)
        self._alone.discard(flight.token)
        self._go_on()

    def _wake(self) -> None:
        """What was on its way is seen to, each by itself: no batch's answer is waited for."""
        super()._wake()
        if self._batch is not None:
            self._end_batch(self._batch)

    def _go_on(self) -> None:
        # Not at once: what comes in this turn of the loop goes along.
        if self._queue and self._batch is None and len(self._alone) < FROM and not self._called:
            self._called = True
            self._loop.call_soon(self._send_group)

    def _send_group(self) -> None:
        self._called = False
        group = self._next_group()
        if len(group) >= FROM:
            self._send_batch(group)
            return
        for flight in group:
            if super()._send(flight):
                self._alone.add(flight.token)
            else:
                self._settle(flight, None)

    def _next_group(self) -> list[Flight]:
        """Of those that still wait: one of each subject, for a batch's own records can't be expected in it."""
        group: dict[str, Flight] = {}
        left: list[Flight] = []
        room = MOST_BYTES
        for flight in self._queue:
            if flight.token not in self._flights:
                continue  # it waited for too long, and goes on by itself
            subject, size = flight.append.subject, len(flight.append.stored)
            if subject in group or len(group) == MOST or size > room:
                left.append(flight)
            else:
                group[subject] = flight
                room -= size
        self._queue = left
        return list(group.values())

    def _send_batch(self, group: list[Flight]) -> None:
        batch = secrets.token_hex(12).encode()
        self._batch = token = self._stream.new_token()
        self._loop.call_later(self._attempt_s, self._end_batch, token)
        self._stream.listen(token, partial(self._heard_batch, token, group))
        for number, flight in enumerate(group, 1):
            append, last = flight.append, number == len(group)
            head = HEAD % (append.expected, batch, number) + (COMMIT if last else b"") + b"\r\n"
            if not self._connection.put(
                append.subject, self._stream.reply_of(token) if last else "", head, append.stored
            ):
                self._give_up(token, group)  # the server forgets a batch that is never committed
                return

    def _heard_batch(self, token: str, group: list[Flight], msg: Delivery) -> None:
        try:
            ack = self._stream.read_ack(msg)
        except (LogUnavailable, msgspec.DecodeError):
            ack = None
        if ack is None or ack.err_code or ack.count != len(group):
            self._give_up(token, group)
            return
        self._end_batch(token)
        first = ack.sequence - len(group) + 1
        for sequence, flight in enumerate(group, first):
            if flight.token in self._flights:
                self._land(flight)
                self._tell(flight, sequence)

    def _give_up(self, token: str, group: list[Flight]) -> None:
        """Each by itself."""
        self._end_batch(token)
        for flight in group:
            if flight.token in self._flights:
                self._settle(flight, None)

    def _end_batch(self, token: str) -> None:
        """It was answered, or is not waited for any more: its flights are seen to by then."""
        self._stream.ignore(token)
        if self._batch == token:
            self._batch = None
            self._go_on()
