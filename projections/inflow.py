"""The log from a sequence on, in batches: never more of it in memory than fits into a bounded buffer.

A tail can't be slowed down by whoever listens to it. So where it is faster than we are, it is let go when the buffer is
full, and another is opened where that one was when the buffer is empty.
"""

import asyncio
from collections import deque
from contextlib import suppress

from eventstore.log import Arrival, EventLog, LogError, Tail

MAX_BUFFERED = 100_000
MAX_BUFFERED_BYTES = 48 * 1024 * 1024


class LogIsAnother(LogError):
    """The log is not the one that was followed so far: what was learnt from it is void."""


class Inflow:
    """What arrives, waiting to be taken. One taker. `close` last."""

    def __init__(self, log: EventLog, *, after: int, max_buffered: int = MAX_BUFFERED) -> None:
        self._log = log
        self._max_buffered = max_buffered
        self._queue: deque[Arrival] = deque()
        self._bytes = 0
        self._heard = after
        self._tail: Tail | None = None
        self._leaving: asyncio.Future[None] | None = None
        self._full = False
        self._another = False
        self._woken = asyncio.Event()
        self._wanted = 1
        self.most_buffered = 0

    @property
    def lag(self) -> int:
        """Records that wait here or in the log, as last heard."""
        return len(self._queue) + (self._tail.lag if self._tail is not None else 0)

    def passed(self, sequence: int) -> bool:
        """Whether all up to there was taken, or is not in the log any more."""
        if self._queue or self._full or self._another:
            return False
        return max(self._heard, self._tail.position if self._tail is not None else 0) >= sequence

    async def take(self, at_most: int, *, within_s: float, linger_s: float = 0.0) -> list[Arrival]:
        """The next ones in order, as many as there are; none where none came in time. Where there are fewer than
        `at_most`, it waits for more for `linger_s`. Raises LogIsAnother, LogUnavailable."""
        await self._keep_flowing()
        if not self._queue:
            await self._wait(1, within_s)
        if self._queue and linger_s:
            await self._wait(at_most, linger_s)
        if self._another:
            raise LogIsAnother("the log went back")
        taken = [self._queue.popleft() for _ in range(min(at_most, len(self._queue)))]
        self._bytes -= sum(len(arrival.stored) for arrival in taken)
        return taken

    async def close(self) -> None:
        """Follow no more."""
        self._let_go()
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            await leaving

    def _let_go(self) -> None:
        tail, self._tail = self._tail, None
        if tail is not None:
            self._leaving = asyncio.ensure_future(tail.close())

    async def _keep_flowing(self) -> None:
        if self._full and not self._queue:
            await self.close()
            self._full = False
        if self._tail is None and not self._full:
            self._tail = await self._log.tail(self._on_arrival, self._on_reset, after=self._heard)

    async def _wait(self, wanted: int, within_s: float) -> None:
        """Until so many are here, or there is no use in waiting."""
        self._wanted = wanted
        if len(self._queue) >= wanted or self._full or self._another:
            return
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._woken.wait()

    def _on_arrival(self, arrival: Arrival) -> None:
        if self._full or self._another:
            return  # it comes again, from the next tail
        self._queue.append(arrival)
        self._heard = arrival.sequence
        self._bytes += len(arrival.stored)
        self.most_buffered = max(self.most_buffered, len(self._queue))
        self._full = len(self._queue) >= self._max_buffered or self._bytes >= MAX_BUFFERED_BYTES
        if self._full:
            self._let_go()  # at once: what it still brings is brought twice
        if self._full or len(self._queue) >= self._wanted:
            self._woken.set()

    def _on_reset(self) -> None:
        self._another = True
        self._woken.set()
