"""One JetStream stream: acknowledged publishes through an inbox of our own, the leader's word, batched direct gets."""

import asyncio
import base64
import itertools
import random
import time
from datetime import datetime

import msgspec
import structlog
from msgspec import Struct
from nats.aio.subscription import Subscription

from eventstore.client import Delivery, Take
from eventstore.connection import Connection, RefusedByServer
from eventstore.log import Arrival, LogUnavailable

log = structlog.stdlib.get_logger()

NO_SUCH_MESSAGE = 10037
NO_SUCH_STREAM = 10059
BATCH = 256
BATCH_BYTES = 8 * 1024 * 1024
LARGEST = 1024 * 1024
"""Well below what the client keeps for us (64 MiB): over that it would drop a part."""
IMPORTED = "Tasktrail-Imported"
"""The header of a record that came from another log. (The only one of ours: metadata lives in the payload.)"""
READ_WITHIN_S = 5.0


class StreamState(Struct, frozen=True):
    """The leader's word on a stream."""

    first_sequence: int
    last_sequence: int
    bytes: int
    max_bytes: int


class Ack(Struct, frozen=True):
    """JetStream's answer to a publish: a sequence, or an error; of an atomic batch the last one's, and how many."""

    sequence: int
    err_code: int = 0
    description: str = ""
    count: int = 1


class _State(Struct):
    first_seq: int
    last_seq: int
    bytes: int


class _Config(Struct):
    max_bytes: int = -1


class _Info(Struct):
    state: _State
    config: _Config


class _Configured(Struct):
    config: dict[str, object]


class _Message(Struct):
    subject: str
    seq: int
    data: str = ""
    hdrs: str | None = None


class _Got(Struct):
    message: _Message


class _AckError(Struct):
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    seq: int = 0
    count: int = 1
    error: _AckError | None = None


class _Cut(LogUnavailable):
    """An answer that did not come whole: worth asking again."""


class Stream:
    """A stream by name, on one connection. `open` first, `close` last."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self._inbox = connection.new_inbox()
        self._waiting: dict[str, Take] = {}
        self._tokens = itertools.count()
        self._reading: set[asyncio.Future[int]] = set()
        self._subscription: Subscription | None = None
        self._decode_ack = msgspec.json.Decoder(_Ack).decode

    async def open(self) -> None:
        """Listen for answers."""
        self._subscription = await self.connection.take(f"{self._inbox}.*", self._on_answer)
        self.connection.on_reconnected(self._ask_again)

    async def close(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self.connection.unsubscribe(self._subscription)

    async def ensure(self, config: dict[str, object]) -> None:
        """Create the stream, or bring it to this configuration. Raises RefusedByServer, LogUnavailable."""
        config = {"name": self.name, **config}
        try:
            await self.connection.api(f"STREAM.CREATE.{self.name}", config, timeout_s=5.0)
        except RefusedByServer as error:
            if error.err_code != 10058:  # "stream name already in use with a different configuration"
                raise
            await self.connection.api(f"STREAM.UPDATE.{self.name}", config, timeout_s=5.0)

    async def allow_batches(self) -> None:
        """Have it take atomic batches; all else stays as it is. Raises LogUnavailable, RefusedByServer."""
        told = msgspec.convert(await self.connection.api(f"STREAM.INFO.{self.name}"), type=_Configured)
        if not told.config.get("allow_atomic"):
            await self.connection.api(f"STREAM.UPDATE.{self.name}", {**told.config, "allow_atomic": True})

    async def state(self) -> StreamState:
        """The leader's word. Raises LogUnavailable, RefusedByServer."""
        body = await self.connection.api(f"STREAM.INFO.{self.name}", timeout_s=1.0)
        info = msgspec.convert(body, type=_Info)
        return StreamState(info.state.first_seq, info.state.last_seq, info.state.bytes, info.config.max_bytes)

    async def get(
        self, *, sequence: int | None = None, subject: str | None = None, since: datetime | None = None
    ) -> Arrival | None:
        """From the leader: the message at a sequence, or a subject's last, or a subject's first from a sequence on, or
        the first since a moment.

        None: there is none. Raises LogUnavailable.
        """
        if since is not None:
            request: dict[str, object] = {"start_time": since.isoformat(), "next_by_subj": ">"}
        elif sequence is None:
            request = {"last_by_subj": subject}
        elif subject is None:
            request = {"seq": sequence}
        else:
            request = {"seq": sequence, "next_by_subj": subject}
        try:
            body = await self.connection.api(f"STREAM.MSG.GET.{self.name}", request)
        except RefusedByServer as error:
            if error.err_code == NO_SUCH_MESSAGE:
                return None
            raise LogUnavailable(str(error)) from error
        got = msgspec.convert(body, type=_Got).message
        headers = b"" if got.hdrs is None else base64.b64decode(got.hdrs)
        deleted, imported = b"KV-Operation: DEL" in headers, IMPORTED.encode() in headers
        return Arrival(got.seq, got.subject, base64.b64decode(got.data), deleted=deleted, imported=imported)

    def expect(self, publish_timeout_s: float, *, token: str | None = None) -> "Expected":
        """A place where one acknowledgement will arrive; the same for all attempts at one publish, also where the first
        was made with the reply of this token."""
        return Expected(self, token or f"{next(self._tokens):x}", publish_timeout_s)

    def new_token(self) -> str:
        """A name for one answer that is to come."""
        return f"{next(self._tokens):x}"

    def reply_of(self, token: str) -> str:
        """The reply subject whose answers come to this token."""
        return f"{self._inbox}.{token}"

    def listen(self, token: str, hear: Take) -> None:
        """Have answers to this token's reply taken as they are read from the socket, until `ignore`."""
        self._waiting[token] = hear

    def ignore(self, token: str) -> None:
        """Listen to them no more."""
        self._waiting.pop(token, None)

    async def publish(
        self, subject: str, payload: bytes, *, headers: dict[str, str] | None = None, timeout_s: float = 5.0
    ) -> int:
        """One acknowledged publish; its sequence. Raises LogUnavailable, RefusedByServer."""
        with self.expect(timeout_s) as expected:
            await self.connection.publish(subject, payload, reply=expected.reply, headers=headers)
            ack = await expected.ack()
        if ack.err_code:
            raise RefusedByServer(subject, ack.err_code, ack.description)
        return ack.sequence

    async def batch(
        self, subject: str, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Arrival]:
        """Messages of one exact subject after a sequence, by direct get: fast, but a replica may be behind the leader.

        About `max_bytes` of them (at least one MiB). Raises LogUnavailable.
        """
        found: list[Arrival] = []
        room = max_bytes
        while (limit is None or len(found) < limit) and (room is None or room > 0):
            wanted = BATCH if limit is None else min(BATCH, limit - len(found))
            more, pending = await self._whole_batch(subject, found[-1].sequence if found else after, wanted, room)
            found += more
            if not more or pending == 0:
                break
            if room is not None:
                room -= sum(len(one.stored) for one in more)
        return found

    async def _whole_batch(self, subject: str, after: int, wanted: int, room: int | None) -> tuple[list[Arrival], int]:
        """One batch and how many come after it; asked for again where the answer was cut."""
        until = time.monotonic() + READ_WITHIN_S
        while True:
            try:
                return await self._one_batch(subject, after, wanted, room, until - time.monotonic())
            except _Cut:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(random.uniform(0.01, 0.05))

    async def _one_batch(
        self, subject: str, after: int, wanted: int, room: int | None, within_s: float
    ) -> tuple[list[Arrival], int]:
        token = f"{next(self._tokens):x}"
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        found: list[Arrival] = []
        self._waiting[token] = _batch_hearer(subject, found, done)
        self._reading.add(done)
        # A message has 1 MiB at most: one always fits.
        most = BATCH_BYTES if room is None else min(BATCH_BYTES, max(room, LARGEST))
        request = {"seq": after + 1, "next_by_subj": subject, "batch": wanted, "max_bytes": most}
        try:
            await self.connection.publish(
                f"$JS.API.DIRECT.GET.{self.name}", msgspec.json.encode(request), reply=f"{self._inbox}.{token}"
            )
            async with asyncio.timeout(within_s):
                pending = await done
        except TimeoutError as error:
            raise LogUnavailable(f"{subject}: no answer to a read within {READ_WITHIN_S:g} s") from error
        finally:
            del self._waiting[token]
            self._reading.discard(done)
        return found, pending

    def _ask_again(self) -> None:
        for done in self._reading:
            if not done.done():
                done.set_exception(_Cut("the connection was lost in the middle of a read"))

    def _on_answer(self, msg: Delivery) -> None:
        waiting = self._waiting.get(msg.subject[len(self._inbox) + 1 :])
        if waiting is not None:
            waiting(msg)

    def read_ack(self, msg: Delivery) -> Ack:
        """What an answer to a publish says. Raises LogUnavailable, DecodeError."""
        if msg.raw and msg.headers.get("Status") == "503":
            raise LogUnavailable(f"stream {self.name} has no leader at the moment")
        ack = self._decode_ack(msg.data)
        if ack.error is not None:
            return Ack(0, ack.error.err_code, ack.error.description)
        if ack.seq < 1:
            raise LogUnavailable(f"stream {self.name}: an answer that says nothing")
        return Ack(ack.seq, count=ack.count)


class Expected:
    """One awaited acknowledgement; a context, so that no answer is waited for longer than its publish."""

    def __init__(self, stream: Stream, token: str, timeout_s: float) -> None:
        self._stream = stream
        self._token = token
        self._timeout_s = timeout_s
        self.reply = f"{stream._inbox}.{token}"  # pyright: ignore[reportPrivateUsage]  # one room, two classes
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Ack] = self._loop.create_future()

    def __enter__(self) -> "Expected":
        self._stream._waiting[self._token] = self._on_answer  # pyright: ignore[reportPrivateUsage]  # as above
        return self

    def __exit__(self, *_: object) -> None:
        self._stream._waiting.pop(self._token, None)  # pyright: ignore[reportPrivateUsage]  # as above
        if self._future.done() and not self._future.cancelled():
            self._future.exception()  # seen: an answer that nobody waited for any more is no warning

    async def ack(self, timeout_s: float | None = None) -> Ack:
        """The acknowledgement. Raises LogUnavailable when none comes in time; may be awaited again."""
        # A timer of our own, for this is each append's: it costs 1 us, asyncio.timeout 3, asyncio.wait 7.
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        timer = self._loop.call_later(timeout_s, self._end_wait, "no acknowledgement in time")
        try:
            return await self._future
        finally:
            timer.cancel()
            self._future = self._loop.create_future()

    def wake(self) -> None:
        """End the wait: the connection came back, so the publish is worth repeating now."""
        self._end_wait("the connection was lost meanwhile")

    def _end_wait(self, why: str) -> None:
        if not self._future.done():
            self._future.set_exception(LogUnavailable(f"stream {self._stream.name}: {why}"))

    def _on_answer(self, msg: Delivery) -> None:
        if self._future.done():
            return
        try:
            self._future.set_result(self._stream.read_ack(msg))
        except (LogUnavailable, msgspec.DecodeError) as error:
            self._future.set_exception(LogUnavailable(str(error)))


def _batch_hearer(subject: str, found: list[Arrival], done: asyncio.Future[int]) -> Take:
    """Gathers the messages of one batch; `done` gets how many come after it.

    Each says which one came before it in the batch: what the client dropped on the way would be a hole in a history.
    """

    def hear(msg: Delivery) -> None:
        if done.done():
            return
        headers = msg.headers
        status = headers.get("Status")
        before = int(headers.get("Nats-Last-Sequence", "0"))
        if status == "404":
            done.set_result(0)
        elif status not in (None, "204"):
            done.set_exception(_Cut(f"{subject}: {status} {headers.get('Description', '')}"))
        elif before != (found[-1].sequence if found else 0):
            done.set_exception(_Cut(f"{subject}: a part of an answer is missing after {before}"))
        elif status == "204":
            done.set_result(int(headers.get("Nats-Num-Pending", "0")))
        else:
            sequence, imported = int(headers["Nats-Sequence"]), IMPORTED in headers
            found.append(Arrival(sequence, headers["Nats-Subject"], msg.data, imported=imported))

    return hear
