"""The log on JetStream: the stream `TASKS`, its appender and its reader."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

import structlog

from eventstore import codec
from eventstore.appender import NO_ROOM, Appender
from eventstore.blobs import JetStreamBlobs
from eventstore.connection import Connection, RefusedByServer
from eventstore.events import LogRecord, Owner, Record, SessionRecord, TaskId
from eventstore.joining import JoiningAppender
from eventstore.log import (
    CHECKPOINTS,
    Arrival,
    LogError,
    LogFull,
    LogUnavailable,
    OnArrival,
    OnEnd,
    OnReset,
    Recorded,
    SessionRecorded,
    Tail,
    WrongExpectedSequence,
    session_subject,
    subjects_of,
    task_subject,
)
from eventstore.replay import StreamReplay
from eventstore.stream import IMPORTED, Stream
from eventstore.sweep import sweep_blobs
from eventstore.tail import StreamTail

log = structlog.stdlib.get_logger()

STREAM = "TASKS"
SUBJECTS = ("tasks.>", "sessions.>", CHECKPOINTS)
MAX_CONSUMERS = 10_000

AT_ONCE = 256
"""Records put back without waiting for the acknowledgement of those before."""
EPOCH, FAR = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""The server counts nanoseconds in 64 bits: moments before and after mean others to it."""
BEHIND_S = 0.05
"""After so long a replica that was behind the leader is asked again."""


class JetStreamLog:
    """The log. Build with `open`; several processes may have the same one open."""

    def __init__(
        self, connection: Connection, stream: Stream, blobs: JetStreamBlobs, *, patience_s: float, joins: bool
    ) -> None:
        self.connection = connection
        self.blobs = blobs
        self._stream = stream
        self._patience_s = patience_s
        kind = JoiningAppender if joins else Appender
        self._appender = kind(connection, stream, patience_s=patience_s)
        self._tails: list[StreamTail] = []

    @classmethod
    async def open(
        cls,
        connection: Connection,
        *,
        max_bytes: int = -1,
        replicas: int = 1,
        patience_s: float = 5.0,
        joins: bool = False,
    ) -> "JetStreamLog":
        """Create the stream where it is missing; keep its `max_bytes` where it is not. `patience_s` bounds an append.
        `joins`: what waits goes in batches, which pays where the server syncs before each acknowledgement.

        Raises LogUnavailable, RefusedByServer.
        """
        stream = Stream(connection, STREAM)
        await stream.open()
        config: dict[str, object] = {
            "subjects": list(SUBJECTS),
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_bytes": max_bytes,
            "max_consumers": MAX_CONSUMERS,
            "allow_direct": True,
            "allow_atomic": True,
            "num_replicas": replicas,
            # A duplicate window can't be 0; without message ids nothing is ever deduplicated.
            "duplicate_window": 100_000_000,
        }
        try:
            await stream.state()
        except RefusedByServer:
            await stream.ensure(config)
        if joins:
            await stream.allow_batches()  # an older release made it without
        blobs = await JetStreamBlobs.open(connection, replicas=replicas)
        return cls(connection, stream, blobs, patience_s=patience_s, joins=joins)

    @property
    def fullness(self) -> float:
        """How much of `max_bytes` is taken, 0 to 1, as the tail last heard it (0 without a tail or a limit)."""
        for tail in self._tails:
            if not tail.closed:
                leader = tail.leader
                return leader.bytes / leader.max_bytes if leader.max_bytes > 0 else 0.0
        return 0.0

    def begin(self, owner: Owner, task_id: TaskId, record: Record, expected: int, on_end: OnEnd) -> bool:
        """Begin to add one record, where nothing has to be waited for."""
        subject = task_subject(owner, task_id)
        stored = codec.encode(record)
        if len(stored) > codec.MAX_INLINE:
            return False
        # What is given back is what a replay will see; and what could not be read back is not written.
        record = codec.decode(stored)

        def ended(end: int | LogError) -> None:
            if isinstance(end, int):
                on_end(Recorded(sequence=end, owner=owner, task_id=task_id, record=record, stored=stored))
            else:
                on_end(end)

        return self._appender.begin(subject, record.record_id, stored, expected, ended)

    async def append(self, owner: Owner, task_id: TaskId, record: Record, expected: int) -> Recorded:
        """Add one record."""
        ended: asyncio.Future[Recorded | LogError] = asyncio.get_running_loop().create_future()
        if self.begin(owner, task_id, record, expected, partial(_tell, ended)):
            end = await ended
            if isinstance(end, LogError):
                raise end
            return end
        subject = task_subject(owner, task_id)
        stored = await self._packed(subject, record, expected)
        record = codec.decode(stored)  # as above
        sequence = await self._appender.append(subject, record.record_id, stored, expected)
        return Recorded(sequence=sequence, owner=owner, task_id=task_id, record=record, stored=stored)

    async def append_session(
        self, owner: Owner, session_id: str, record: SessionRecord, expected: int
    ) -> SessionRecorded:
        """Add one record to a session, if its last sequence is `expected` (0: it has none). Raises as `append`."""
        return codec.session_recorded(await self._append(session_subject(owner, session_id), record, expected))

    async def read_session(self, owner: Owner, session_id: str, *, after: int = 0) -> list[SessionRecorded]:
        """All that the leader has of a session after a sequence."""
        subject = session_subject(owner, session_id)
        last = await self.last_on(subject)
        until = time.monotonic() + self._patience_s
        while last > after:
            found = await self._stream.batch(subject, after=after)
            if found and found[-1].sequence >= last:
                return [codec.session_recorded(one) for one in found]
            if time.monotonic() > until:
                raise LogUnavailable(f"{subject}: no replica has record {last}")
            await asyncio.sleep(BEHIND_S)
        return []

    async def append_checkpoint(self, record: LogRecord, expected: int) -> Arrival:
        """Add a checkpoint, if the last one's sequence is `expected`. Raises as `append`."""
        return await self._append(CHECKPOINTS, record, expected)

    async def _append(self, subject: str, record: SessionRecord | LogRecord, expected: int) -> Arrival:
        stored = await self._packed(subject, record, expected)
        sequence = await self._appender.append(subject, record.record_id, stored, expected)
        return Arrival(sequence, subject, stored)

    async def put_back(self, arrivals: Sequence[Arrival]) -> None:
        """Write records of another log as they are there, at the same sequences: the last one here has to be the one
        before the first. Marked as imported where they say so. After an error some of them may be written.

        Raises WrongExpectedSequence, LogFull, LogUnavailable.
        """
        for at in range(0, len(arrivals), AT_ONCE):
            await self._put_some_back(arrivals[at : at + AT_ONCE])

    async def _put_some_back(self, arrivals: Sequence[Arrival]) -> None:
        with ExitStack() as stack:
            # One connection keeps the order; where one is refused, so are all after it.
            waiting = [stack.enter_context(self._stream.expect(self._patience_s)) for _ in arrivals]
            for arrival, expected in zip(arrivals, waiting, strict=True):
                headers = {"Nats-Expected-Last-Sequence": str(arrival.sequence - 1)}
                if arrival.imported:
                    headers[IMPORTED] = "1"
                await self.connection.publish(arrival.subject, arrival.stored, reply=expected.reply, headers=headers)
            for arrival, expected in zip(arrivals, waiting, strict=True):
                ack = await expected.ack()
                if ack.err_code in NO_ROOM:
                    raise LogFull(ack.description)
                if ack.err_code:
                    raise WrongExpectedSequence(STREAM, arrival.sequence - 1, await self.last_sequence())

    async def last_on(self, subject: str) -> int:
        """The leader's word for the last sequence of a subject; 0: it has none."""
        found = await self._stream.get(subject=subject)
        return 0 if found is None else found.sequence

    async def last_checkpoint(self) -> Arrival | None:
        """The leader's word for the last checkpoint."""
        return await self._stream.get(subject=CHECKPOINTS)

    async def _packed(self, subject: str, record: codec.AnyRecord, expected: int) -> bytes:
        """What to store; what is too big for a message is a blob by then."""
        stored, blob = codec.pack(record)
        if blob is not None:
            await self.blobs.put(record.record_id, blob, subject=subject, expected=expected)
        return stored

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        """The task's records after a sequence. A replica may be behind: compare with `last`."""
        found = await self._stream.batch(task_subject(owner, task_id), after=after, limit=limit, max_bytes=max_bytes)
        return [codec.recorded(one) for one in found]

    async def last(self, owner: Owner, task_id: TaskId) -> int:
        """The leader's word for the task's last sequence; 0: there is no such task."""
        return await self.last_on(task_subject(owner, task_id))

    async def latest(self, owner: Owner, task_id: TaskId) -> Recorded | None:
        """The leader's word for the task's last record; None: there is no such task."""
        found = await self._stream.get(subject=task_subject(owner, task_id))
        return None if found is None else codec.recorded(found)

    async def last_sequence(self) -> int:
        """The leader's word for the log's last sequence."""
        return (await self._stream.state()).last_sequence

    async def tail(self, on_arrival: OnArrival, on_reset: OnReset, *, after: int | None = None) -> Tail:
        """Follow the whole log."""
        tail = await StreamTail.open(
            self.connection, self._stream, on_arrival, on_reset, after=after, on_closed=self._tails.remove
        )
        self._tails.append(tail)
        return tail

    async def at(self, sequence: int) -> Arrival | None:
        """The record with this sequence."""
        return await self._stream.get(sequence=sequence)

    async def first_since(self, moment: datetime) -> int:
        """The sequence of the first record since a moment, or the next one's."""
        last = await self.last_sequence()
        first = await self._stream.get(since=min(max(moment, EPOCH), FAR))
        return last + 1 if first is None else first.sequence

    async def blob_of(self, name: str) -> tuple[Arrival, bytes] | None:
        """A record and its blob, found by what the blob says of its append."""
        append = await self.blobs.append_of(name)
        if append is None:
            return None
        subject, expected = append
        record = await self._stream.get(sequence=expected + 1, subject=subject)
        if record is None or not _refers(record, name):
            return None
        content = await self.blobs.get(name)
        return None if content is None else (record, content)

    async def replay(self, *, after: int, owner: Owner | None = None, subjects: tuple[str, ...] = ()) -> StreamReplay:
        """All that comes after a sequence; of one owner only, or of these subjects, where they are named."""
        subjects = subjects if owner is None else subjects_of(owner)
        return await StreamReplay.open(self.connection, self._stream, after=after, subjects=subjects)

    async def sweep_blobs(self) -> int:
        """Remove the blobs whose fact never came; how many there were. Raises LogUnavailable."""
        return await sweep_blobs(self.blobs, self._stream)

    async def close(self) -> None:
        """Stop the tails and let go of the connection's inboxes."""
        for tail in list(self._tails):
            await tail.close()
        await self._appender.close()
        await self.blobs.close()
        await self._stream.close()


def _tell(ended: asyncio.Future[Recorded | LogError], end: Recorded | LogError) -> None:
    if not ended.done():
        ended.set_result(end)


def _refers(arrival: Arrival, blob: str) -> bool:
    try:
        return blob in codec.blobs_of(arrival.stored)
    except codec.Unreadable:
        return False
