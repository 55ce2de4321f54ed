"""The same log in a list: it passes the same contract tests, and it is as real to its callers."""

import asyncio
import re
from bisect import bisect_left
from collections.abc import AsyncIterable
from contextlib import suppress
from datetime import UTC, datetime
from itertools import accumulate

import structlog

from eventstore import codec
from eventstore.events import LogRecord, Owner, Record, SessionRecord, TaskId
from eventstore.log import (
    CHECKPOINTS,
    Arrival,
    LogError,
    LogUnavailable,
    OnArrival,
    OnEnd,
    OnReset,
    OutcomeUnknown,
    Recorded,
    SessionRecorded,
    WrongExpectedSequence,
    session_subject,
    subjects_of,
    task_subject,
)

log = structlog.stdlib.get_logger()


class MemoryBlobs:
    """Blobs in a dictionary."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    async def put(self, name: str, content: bytes, *, subject: str = "", expected: int = 0) -> None:
        """Store."""
        del subject, expected
        self._contents[name] = content

    async def put_pieces(
        self, name: str, pieces: AsyncIterable[bytes], *, subject: str = "", expected: int = 0
    ) -> None:
        """Store."""
        await self.put(name, b"".join([piece async for piece in pieces]), subject=subject, expected=expected)

    async def get(self, name: str) -> bytes | None:
        """The bytes; None: none by this name."""
        return self._contents.get(name)

    @property
    def names(self) -> list[str]:
        """Of all that are here."""
        return list(self._contents)

    def forget(self, name: str) -> None:
        """As if it had never been stored."""
        self._contents.pop(name, None)


class MemoryTail:
    """A tail that is always there; its deliveries go through the event loop, as those of a server do."""

    def __init__(self, memory: "MemoryLog", on_arrival: OnArrival, position: int) -> None:
        self._memory = memory
        self._on_arrival = on_arrival
        self._position = position
        self._grown = asyncio.Event()
        self._delivered = asyncio.Condition()
        self._running = asyncio.ensure_future(self._run())

    @property
    def position(self) -> int:
        """The last sequence delivered."""
        return self._position

    @property
    def proven(self) -> bool:
        """Nothing can hide."""
        return True

    @property
    def age_s(self) -> float:
        """It is always now."""
        return 0.0

    @property
    def lag(self) -> int:
        """Records not delivered yet."""
        return len(self._memory.arrivals) - self._position

    async def reach(self, sequence: int) -> None:
        """Return once `position` is at least `sequence`."""
        async with self._delivered:
            await self._delivered.wait_for(lambda: self._position >= sequence or self._running.done())
        if self._position < sequence:
            raise LogUnavailable("the tail was closed")

    async def catch_up(self) -> None:
        """Reach the last sequence of now."""
        await self.reach(len(self._memory.arrivals))

    async def close(self) -> None:
        """Stop following."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        async with self._delivered:
            self._delivered.notify_all()

    def grown(self) -> None:
        """The log has more."""
        self._grown.set()

    async def _run(self) -> None:
        while True:
            self._grown.clear()
            for arrival in self._memory.arrivals[self._position :]:
                self._position = arrival.sequence
                try:
                    self._on_arrival(arrival)
                except Exception:
                    # A reader's bug must not make the whole process deaf.
                    log.exception("tail.arrival_failed", sequence=arrival.sequence)
            async with self._delivered:
                self._delivered.notify_all()
            await self._grown.wait()


class MemoryReplay:
    """The list from a sequence on."""

    def __init__(self, memory: "MemoryLog", after: int, subjects: tuple[re.Pattern[str], ...]) -> None:
        self._memory = memory
        self._subjects = subjects
        self.position = after
        self.grown = asyncio.Event()

    @property
    def lag(self) -> int:
        """Records that are still to be taken, whosever they are."""
        return len(self._memory.arrivals) - self.position

    async def take(self, at_most: int, *, within_s: float, linger_s: float = 0.0) -> list[Arrival]:
        """The next ones in order."""
        taken = self._next(at_most)
        if not taken:
            taken = await self._after_growth(1, at_most, within_s)
        if taken and linger_s:
            taken += await self._after_growth(at_most - len(taken), at_most - len(taken), linger_s)
        return taken

    async def close(self) -> None:
        """Follow no more."""
        self._memory.replays.discard(self)

    async def _after_growth(self, wanted: int, at_most: int, wait_s: float) -> list[Arrival]:
        """What came until there were as many as wanted, or the time was over."""
        taken: list[Arrival] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while len(taken) < wanted:
                    self.grown.clear()
                    await self.grown.wait()
                    taken += self._next(at_most - len(taken))
        return taken

    def _next(self, at_most: int) -> list[Arrival]:
        taken: list[Arrival] = []
        while len(taken) < at_most and self.position < len(self._memory.arrivals):
            arrival = self._memory.arrivals[self.position]
            self.position += 1
            if not self._subjects or any(pattern.fullmatch(arrival.subject) for pattern in self._subjects):
                taken.append(arrival)
        return taken


class MemoryLog:
    """The log in a list; sequences count from 1."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobs()
        self.arrivals: list[Arrival] = []
        self._came_at: list[datetime] = []
        self._subjects: dict[str, list[Arrival]] = {}
        self._tails: list[MemoryTail] = []
        self.replays: set[MemoryReplay] = set()
        self._appending: set[asyncio.Task[Recorded]] = set()

    @property
    def fullness(self) -> float:
        """Memory is not counted."""
        return 0.0

    def begin(self, owner: Owner, task_id: TaskId, record: Record, expected: int, on_end: OnEnd) -> bool:
        """Begin to add one record; what would need a blob has to be waited for, as in any log."""
        task_subject(owner, task_id)
        stored = codec.encode(record)
        if len(stored) > codec.MAX_INLINE:
            return False
        codec.decode(stored)
        appending = asyncio.ensure_future(self.append(owner, task_id, record, expected))
        self._appending.add(appending)

        def ended(appending: asyncio.Task[Recorded]) -> None:
            self._appending.discard(appending)
            if appending.cancelled():
                on_end(OutcomeUnknown("the log is closed", task_id=task_id))
                return
            error = appending.exception()
            if error is None:
                on_end(appending.result())
            elif isinstance(error, LogError):
                on_end(error)
            else:
                log.error("append.fault", task_id=task_id, exc_info=error)
                on_end(OutcomeUnknown(f"{type(error).__name__}: {error}", task_id=task_id))

        appending.add_done_callback(ended)
        return True

    async def append(self, owner: Owner, task_id: TaskId, record: Record, expected: int) -> Recorded:
        """Add one record, if the task's last sequence is `expected`."""
        return codec.recorded(await self._append(task_subject(owner, task_id), record, expected))

    async def append_session(
        self, owner: Owner, session_id: str, record: SessionRecord, expected: int
    ) -> SessionRecorded:
        """Add one record to a session, if its last sequence is `expected`."""
        return codec.session_recorded(await self._append(session_subject(owner, session_id), record, expected))

    async def read_session(self, owner: Owner, session_id: str, *, after: int = 0) -> list[SessionRecorded]:
        """All of a session after a sequence."""
        await asyncio.sleep(0)
        found = self._subjects.get(session_subject(owner, session_id), [])
        return [codec.session_recorded(one) for one in found if one.sequence > after]

    async def append_checkpoint(self, record: LogRecord, expected: int) -> Arrival:
        """Add a checkpoint, if the last one's sequence is `expected`."""
        return await self._append(CHECKPOINTS, record, expected)

    async def _append(self, subject: str, record: codec.AnyRecord, expected: int) -> Arrival:
        stored, blob = codec.pack(record)
        if blob is not None:
            await self.blobs.put(record.record_id, blob, subject=subject, expected=expected)
        await asyncio.sleep(0)  # a real append lets others in, before and after
        history = self._subjects.setdefault(subject, [])
        if (history[-1].sequence if history else 0) != expected:
            after_expected = next((one for one in history if one.sequence > expected), None)
            if after_expected is None:
                raise WrongExpectedSequence(subject, expected, history[-1].sequence if history else 0)
            if codec.record_id_of(after_expected) == record.record_id:
                return after_expected
            raise WrongExpectedSequence(subject, expected, after_expected.sequence)
        appended = self._add(subject, stored)
        history.append(appended)
        await asyncio.sleep(0)
        return appended

    async def last_checkpoint(self) -> Arrival | None:
        """The last checkpoint."""
        await asyncio.sleep(0)
        history = self._subjects.get(CHECKPOINTS)
        return history[-1] if history else None

    def _add(self, subject: str, stored: bytes) -> Arrival:
        arrival = Arrival(len(self.arrivals) + 1, subject, stored)
        self.arrivals.append(arrival)
        self._came_at.append(datetime.now(UTC))
        for tail in self._tails:
            tail.grown()
        for replay in self.replays:
            replay.grown.set()
        return arrival

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        """The task's records after a sequence."""
        await asyncio.sleep(0)
        found = [one for one in self._subjects.get(task_subject(owner, task_id), []) if one.sequence > after]
        found = found if limit is None else found[:limit]
        sizes = accumulate(len(one.stored) for one in found[:-1])
        within = 1 + sum(max_bytes is None or size < max_bytes for size in sizes)
        return [codec.recorded(one) for one in found[:within]]

    async def last(self, owner: Owner, task_id: TaskId) -> int:
        """The task's last sequence; 0: there is no such task."""
        await asyncio.sleep(0)
        history = self._subjects.get(task_subject(owner, task_id))
        return history[-1].sequence if history else 0

    async def latest(self, owner: Owner, task_id: TaskId) -> Recorded | None:
        """The task's last record; None: there is no such task."""
        await asyncio.sleep(0)
        history = self._subjects.get(task_subject(owner, task_id))
        return codec.recorded(history[-1]) if history else None

    async def last_sequence(self) -> int:
        """The log's last sequence."""
        return len(self.arrivals)

    async def at(self, sequence: int) -> Arrival | None:
        """The record with this sequence."""
        return self.arrivals[sequence - 1] if 0 < sequence <= len(self.arrivals) else None

    async def first_since(self, moment: datetime) -> int:
        """The sequence of the first record since a moment, or the next one's."""
        return bisect_left(self._came_at, moment) + 1

    async def blob_of(self, name: str) -> tuple[Arrival, bytes] | None:
        """A record and its blob."""
        content = await self.blobs.get(name)
        referring = (one for one in self.arrivals if name in codec.blobs_of(one.stored))
        record = next(referring, None) if content is not None else None
        return None if content is None or record is None else (record, content)

    async def sweep_blobs(self) -> int:
        """Nothing outlives a crash here."""
        return 0

    async def replay(self, *, after: int, owner: Owner | None = None, subjects: tuple[str, ...] = ()) -> MemoryReplay:
        """All that comes after a sequence; of one owner only, or of these subjects, where they are named."""
        filters = subjects if owner is None else subjects_of(owner)
        patterns = [re.escape(one).replace(r"\*", "[^.]+").replace(">", ".+") for one in filters]
        replay = MemoryReplay(self, after, tuple(map(re.compile, patterns)))
        self.replays.add(replay)
        return replay

    async def tail(self, on_arrival: OnArrival, on_reset: OnReset, *, after: int | None = None) -> MemoryTail:
        """Follow the whole log; it never becomes another, so `on_reset` is not called."""
        del on_reset
        tail = MemoryTail(self, on_arrival, len(self.arrivals) if after is None else after)
        self._tails.append(tail)
        return tail

    async def close(self) -> None:
        """Stop the tails."""
        for tail in self._tails:
            await tail.close()
