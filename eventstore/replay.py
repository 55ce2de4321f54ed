"""The log from a sequence on, at the pace of whoever takes it: replay first, then what comes, in one way.

Each has a consumer of its own and asks the server for a bounded number of messages: a slow one holds up nobody.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress

from eventstore.connection import Connection
from eventstore.flow import Pulled
from eventstore.log import Arrival, LogIsAnother, LogUnavailable, Replay
from eventstore.stream import Stream
from eventstore.tail import StreamTail

LEAST = 2_000
LEAST_BYTES = 4 * 1024 * 1024
"""More is asked for as soon as fewer records, with fewer bytes, wait here to be taken."""

BATCH = 1_000
LOOK_S = 0.25
"""How often it is looked whether the position moved without a record."""
SILENT_S = 30.0
"""A log that says nothing for so long, though it has more, is away."""


async def take_through(replay: Replay, up_to: int) -> AsyncGenerator[list[Arrival]]:
    """All up to a sequence, in batches as they come; the last may go beyond. Raises LogUnavailable, LogIsAnother."""
    heard_at = time.monotonic()
    while replay.position < up_to:
        if taken := await replay.take(BATCH, within_s=LOOK_S):
            yield taken
            heard_at = time.monotonic()
        elif time.monotonic() - heard_at > SILENT_S and replay.position < up_to:
            raise LogUnavailable(f"nothing came from the log for {SILENT_S:g} s")


class StreamReplay:
    """What arrives, waiting to be taken. One taker. Build with `open`, `close` last."""

    def __init__(self, flow: Pulled) -> None:
        self._flow = flow
        self._tail: StreamTail | None = None
        self._queue: deque[Arrival] = deque()
        self._bytes = 0
        self._another = False
        self._woken = asyncio.Event()
        self._wanted = 1

    @classmethod
    async def open(
        cls, connection: Connection, stream: Stream, *, after: int, subjects: tuple[str, ...] = ()
    ) -> "StreamReplay":
        """All that comes after a sequence; of these subjects only, where some are named. Raises LogUnavailable."""
        replay = cls(Pulled(connection))
        replay._tail = await StreamTail.open(
            connection,
            stream,
            replay._on_arrival,
            replay._on_reset,
            after=after,
            flow=replay._flow,
            subjects=subjects,
        )
        return replay

    @property
    def held(self) -> int:
        """Records that wait here."""
        return len(self._queue)

    @property
    def lag(self) -> int:
        """Records that wait here or in the log, as last heard."""
        return len(self._queue) + self.tail.pending

    @property
    def position(self) -> int:
        """All up to here was taken, or is not to come: not in the log any more, or of other subjects."""
        return self._queue[0].sequence - 1 if self._queue else self.tail.position

    async def take(self, at_most: int, *, within_s: float, linger_s: float = 0.0) -> list[Arrival]:
        """The next ones in order, as many as there are; none where none came in time. Where there are fewer than
        `at_most`, it waits for more for `linger_s`. Raises LogIsAnother, LogUnavailable."""
        if not self._queue:
            await self._wait(1, within_s)
        if self._queue and linger_s:
            await self._wait(at_most, linger_s)
        if self._another:
            raise LogIsAnother("the log went back")
        taken = [self._queue.popleft() for _ in range(min(at_most, len(self._queue)))]
        self._bytes -= sum(len(one.stored) for one in taken)
        if self._has_room and not self._flow.room:
            self._flow.room = True
            with suppress(LogUnavailable):
                await self.tail.go_on()  # what can't be asked now is asked when there is a connection again
        return taken

    async def close(self) -> None:
        """Follow no more."""
        await self.tail.close()

    @property
    def tail(self) -> StreamTail:
        """What it is taken from."""
        assert self._tail is not None, "build with open()"
        return self._tail

    @property
    def _has_room(self) -> bool:
        return len(self._queue) < LEAST and self._bytes < LEAST_BYTES

    async def _wait(self, wanted: int, within_s: float) -> None:
        """Until so many are here, or there is no use in waiting."""
        self._wanted = wanted
        if len(self._queue) >= wanted or self._another:
            return
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._woken.wait()

    def _on_arrival(self, arrival: Arrival) -> None:
        if self._another:
            return
        self._queue.append(arrival)
        self._bytes += len(arrival.stored)
        self._flow.room = self._has_room
        if len(self._queue) >= self._wanted and not self._woken.is_set():
            self._woken.set()

    def _on_reset(self) -> None:
        self._another = True
        self._woken.set()
