"""A live reader of a stream: our own consumer over all of it (or some subjects), its gaps noticed and mended.

Ours, because nats-py's ordered consumer started again at sequence 1, or stayed deaf for 20 s (docs/decisions/tail.md).
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
import structlog
from nats.aio.subscription import Subscription

from eventstore.client import Delivery, Take
from eventstore.connection import Connection, RefusedByServer
from eventstore.flow import NANOSECONDS, Pulled, Pushed
from eventstore.leader import ASK_EVERY_S, Leader
from eventstore.log import Arrival, LogError, LogUnavailable, OnArrival, OnReset
from eventstore.stream import IMPORTED, Stream, StreamState

log = structlog.stdlib.get_logger()

SILENCE_S = 1.2
"""Two heartbeats missed: the consumer is gone, or the server is."""
AT_MOST_EVERY_S = 0.05
OPEN_WITHIN_S = 3.0
CATCH_UP_WITHIN_S = 5.0
PROVEN_FOR_S = 1.0


class StreamTail:
    """Every message of a stream once, in order, from a position on, whatever is lost in between. Build with `open`."""

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        on_arrival: OnArrival,
        on_reset: OnReset,
        flow: Pushed | Pulled,
        subjects: tuple[str, ...],
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._on_arrival = on_arrival
        self._on_reset = on_reset
        self._after: int | None = None
        self._flow = flow
        self._subjects = subjects
        self._position = 0
        self._seen: tuple[int, bytes] | None = None
        self._generation = 0
        self._consumer_sequence = 0
        self._heard_at = 0.0
        self._broken = asyncio.Event()
        self._subscription: Subscription | None = None
        self._consumer: str | None = None
        self._live = False
        self._pending = 0
        self._reaching: list[tuple[int, asyncio.Future[None]]] = []
        self._leader = Leader(stream)
        self._keeping: asyncio.Task[None] | None = None
        self._going_on: asyncio.Task[None] | None = None
        self._on_closed: Callable[[StreamTail], None] | None = None
        self.closed = False
        self.recreations = 0

    @classmethod
    async def open(
        cls,
        connection: Connection,
        stream: Stream,
        on_arrival: OnArrival,
        on_reset: OnReset,
        *,
        after: int | None = None,
        on_closed: "Callable[[StreamTail], None] | None" = None,
        flow: Pushed | Pulled | None = None,
        subjects: tuple[str, ...] = (),
    ) -> "StreamTail":
        """Begin after a sequence (None: the leader's last; never "new"); `on_closed` hears of its end once. Everything
        is pushed, unless told otherwise by `flow` (for this tail alone) and `subjects`.

        Raises LogUnavailable.
        """
        tail = cls(connection, stream, on_arrival, on_reset, flow or Pushed(connection), subjects)
        tail._after = after
        state = await tail._leader.ask()
        tail._position = state.last_sequence if after is None else after
        if tail._position > 0:
            at = await stream.get(sequence=tail._position)
            tail._seen = (at.sequence, at.stored) if at else None
        try:
            await tail._begin()
        except BaseException:
            await tail.close()
            raise
        tail._on_closed = on_closed
        connection.on_reconnected(tail._break)
        if flow is None:
            tail._leader.keep_asking()
        tail._keeping = asyncio.ensure_future(tail._keep())
        return tail

    async def _begin(self) -> None:
        """The first consumer. A server that has much to do may not answer at once."""
        until = time.monotonic() + OPEN_WITHIN_S
        while True:
            try:
                return await self._recreate()
            except LogUnavailable:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(AT_MOST_EVERY_S)

    @property
    def position(self) -> int:
        """The last sequence delivered, or passed over because the log no longer has it."""
        return self._position

    @property
    def proven(self) -> bool:
        """Whether it reached, within about the last second, what the leader had said by then."""
        return self.age_s <= PROVEN_FOR_S + ASK_EVERY_S

    @property
    def age_s(self) -> float:
        """Seconds since the leader was asked for the newest word of its that this tail has reached."""
        return self._leader.age_s(self._position)

    @property
    def lag(self) -> int:
        """Records that the leader had, when last asked, and that were not delivered yet."""
        return max(0, self._leader.word.last_sequence - self._position)

    @property
    def pending(self) -> int:
        """Messages for this tail that were in the stream and not sent yet when the last one was."""
        return self._pending

    @property
    def leader(self) -> StreamState:
        """The leader's word, at most a quarter of a second old while it answers."""
        return self._leader.word

    async def reach(self, sequence: int) -> None:
        """Return once `position` is at least `sequence`. Raises LogUnavailable where that can't come any more."""
        if self.closed:
            raise LogUnavailable("the tail is closed")
        if self._position >= sequence:
            return
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reaching.append((sequence, reached))
        await reached

    async def catch_up(self) -> None:
        """Ask the leader for its last sequence and reach it. Callers that come together share one question.

        Raises LogUnavailable.
        """
        last = await self._leader.last_sequence()
        try:
            async with asyncio.timeout(CATCH_UP_WITHIN_S):
                await self.reach(last)
        except TimeoutError as error:
            raise LogUnavailable(f"the tail did not reach {last} within {CATCH_UP_WITHIN_S:g} s") from error

    async def close(self) -> None:
        """Stop following."""
        self.closed = True
        self._connection.off_reconnected(self._break)
        on_closed, self._on_closed = self._on_closed, None
        if on_closed is not None:
            on_closed(self)
        self._generation += 1
        self._broken.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        self._give_up_reaching("the tail is closed")
        await self._leader.close()
        await self._let_go()

    async def _keep(self) -> None:
        # `closed` is looked at because nats-py may swallow a cancellation.
        while not self.closed:
            began = time.monotonic()
            await self._until_broken()
            if time.monotonic() - began < AT_MOST_EVERY_S:
                await asyncio.sleep(AT_MOST_EVERY_S)  # whatever is wrong, it was not that consumer
            self.recreations += 1
            log.debug("tail.recreated", stream=self._stream.name, position=self._position, lag=self.lag)
            while not self.closed:
                try:
                    await self._recreate()
                    break
                except LogError as error:
                    log.debug("tail.not_yet", stream=self._stream.name, error=str(error))
                except Exception:
                    # Whatever it is: a tail that ended here would be deaf for ever, and nobody would know.
                    log.exception("tail.not_recreated", stream=self._stream.name)
                if not self.closed:
                    await asyncio.sleep(random.uniform(0.05, 0.15))

    async def _until_broken(self) -> None:
        while not self._broken.is_set():
            silent_s = time.monotonic() - self._heard_at
            if silent_s >= SILENCE_S and self._flow.expects:
                self._break()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(max(SILENCE_S - silent_s, SILENCE_S / 4)):
                    await self._broken.wait()

    def _break(self) -> None:
        """From now on nothing of the present consumer is believed."""
        self._generation += 1
        self._broken.set()

    async def _recreate(self) -> None:
        """A new consumer at position + 1, after a look whether this is still the same log."""
        self._broken.clear()
        self._generation += 1
        generation = self._generation
        await self._let_go()
        await self._check_same_log()
        inbox = self._connection.new_inbox()
        self._consumer = f"tail-{inbox.rpartition('.')[2]}"
        self._consumer_sequence = 0
        where, how = self._flow.begin(inbox)
        self._subscription = await self._connection.take(where, self._hearer(generation))
        config: dict[str, object] = {
            "name": self._consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._position + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": 5 * NANOSECONDS,
            **how,
        }
        if self._subjects:
            config["filter_subjects"] = self._subjects
        request = {"stream_name": self._stream.name, "config": config}
        call = f"CONSUMER.CREATE.{self._stream.name}.{self._consumer}"
        try:
            made = await self._connection.api(call, request, timeout_s=1.0)
        except RefusedByServer as error:
            raise LogUnavailable(str(error)) from error
        self._pending = msgspec.convert(made.get("num_pending", 0), int)
        self._heard_at = time.monotonic()
        self._live = True
        await self.go_on()

    async def go_on(self) -> None:
        """Ask for more, where `flow` has room again. Raises LogUnavailable."""
        if self._live and self._flow.wants:
            if not self._flow.expects:
                self._heard_at = time.monotonic()  # the silence so far was ours
            await self._flow.go_on(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{self._consumer}")

    async def _let_go(self) -> None:
        """No more of the present consumer. It is deleted, too: one that was asked for when the connection was lost may
        come to life later, on a subscription that the client forgot, and would send everything a second time."""
        self._live = False
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, None
        if subscription is not None:
            await self._connection.unsubscribe(subscription)
        if consumer is not None:
            with suppress(LogUnavailable):
                await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream.name}.{consumer}")

    async def _check_same_log(self) -> None:
        """The log went back if it is shorter than what we saw, or holds something else where we are: all is void."""
        state = await self._leader.ask()
        same = state.last_sequence >= self._position
        if same and self._seen is not None:
            at = await self._stream.get(sequence=self._seen[0])
            same = at is None or at.stored == self._seen[1]
        if same:
            return
        log.warning("log.went_back", stream=self._stream.name, was=self._position, found=state.last_sequence)
        last = state.last_sequence
        self._position = last if self._after is None else min(self._after, last)
        self._seen = None
        self._leader.forget()
        self._give_up_reaching("the log went back")
        try:
            self._on_reset()
        except Exception:
            # As for an arrival: who follows on must not become deaf.
            log.exception("tail.reset_failed", stream=self._stream.name)

    def _hearer(self, generation: int) -> Take:
        def hear(said: Delivery) -> None:
            if generation != self._generation:
                return
            self._heard_at = time.monotonic()
            if said.reply.startswith("$JS.ACK."):
                self._take(said)
            elif not self._flow.heard(said):
                self._break()
            elif "Nats-Last-Consumer" in (headers := said.headers):
                self._heartbeat(headers)
            if self._flow.wants and (self._going_on is None or self._going_on.done()):
                self._going_on = asyncio.ensure_future(self._go_on())

        return hear

    async def _go_on(self) -> None:
        with suppress(LogUnavailable):  # the silence that follows is noticed
            await self.go_on()

    def _heartbeat(self, headers: dict[str, str]) -> None:
        if int(headers["Nats-Last-Consumer"]) > self._consumer_sequence:
            self._break()
            return
        # All that was sent has come; what the server passed over up to there was deleted from the log, or is not ours.
        self._position = max(self._position, int(headers.get("Nats-Last-Stream", "0")))
        self._pending = 0
        self._wake()

    def _take(self, msg: Delivery) -> None:
        words = msg.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<time>.<pending>, or with
        # <domain>.<account> before the stream.
        at = 5 if len(words) == 9 else 7
        sequence, consumer_sequence = int(words[at]), int(words[at + 1])
        if consumer_sequence != self._consumer_sequence + 1:
            self._break()
            return
        self._consumer_sequence = consumer_sequence
        self._pending = int(words[at + 3])  # not before: what a hole hides is still to come
        self._flow.took()
        if sequence <= self._position:
            return
        self._position = sequence
        self._seen = sequence, msg.data
        try:
            self._on_arrival(_arrival(sequence, msg))
        except Exception:
            # A reader's bug must not make the whole process deaf.
            log.exception("tail.arrival_failed", stream=self._stream.name, sequence=sequence)
        self._wake()

    def _wake(self) -> None:
        if not self._reaching:
            return
        for sequence, reached in self._reaching:
            if sequence <= self._position and not reached.done():
                reached.set_result(None)
        self._reaching = [waiting for waiting in self._reaching if not waiting[1].done()]

    def _give_up_reaching(self, why: str) -> None:
        for _, reached in self._reaching:
            if not reached.done():
                reached.set_exception(LogUnavailable(why))
        self._reaching.clear()


def _arrival(sequence: int, msg: Delivery) -> Arrival:
    if msg.plain:
        return Arrival(sequence, msg.subject, msg.data)
    headers = msg.headers
    deleted = headers.get("KV-Operation") in ("DEL", "PURGE")
    return Arrival(sequence, msg.subject, msg.data, deleted=deleted, imported=IMPORTED in headers)
