"""The leader's word on a stream: asked again and again, shared by all who ask together; and how old it is."""

import asyncio
import time
from collections import deque
from contextlib import suppress

from eventstore.connection import RefusedByServer
from eventstore.log import LogError, LogUnavailable
from eventstore.stream import Stream, StreamState

ASK_EVERY_S = 0.25


class Leader:
    """What the stream's leader said, and when a reader who is at a position was last known to have all of it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.word = StreamState(0, 0, 0, -1)
        self._closed = False
        self._keeping: asyncio.Task[None] | None = None
        self._unproven: deque[tuple[float, int]] = deque()
        self._proven_at = 0.0
        self._question: asyncio.Task[int] | None = None
        self._asking = asyncio.Lock()
        self._questions: set[asyncio.Task[int]] = set()

    async def ask(self) -> StreamState:
        """The leader's word of now. Raises LogUnavailable."""
        asked_at = time.monotonic()
        try:
            self.word = await self._stream.state()
        except RefusedByServer as error:
            raise LogUnavailable(str(error)) from error
        self._unproven.append((asked_at, self.word.last_sequence))
        while len(self._unproven) > 64:
            self._unproven.popleft()
        return self.word

    def keep_asking(self) -> None:
        """From now on ask until closed, so that `age_s` tells something."""
        self._keeping = asyncio.ensure_future(self._keep_asking())

    async def _keep_asking(self) -> None:
        while not self._closed:  # nats-py may swallow a cancellation
            await asyncio.sleep(ASK_EVERY_S)
            with suppress(LogError):
                await self.ask()

    async def last_sequence(self) -> int:
        """The stream's last sequence, asked after this call. Callers that come together share one question.

        Raises LogUnavailable.
        """
        if self._question is None:
            self._question = asyncio.ensure_future(self._ask_for_all())
            self._questions.add(self._question)
            self._question.add_done_callback(self._answered)
        return await asyncio.shield(self._question)

    def age_s(self, position: int) -> float:
        """Seconds since the leader was asked for the newest word of its that a reader at `position` has reached."""
        while self._unproven and self._unproven[0][1] <= position:
            self._proven_at = self._unproven.popleft()[0]
        return time.monotonic() - self._proven_at

    def forget(self) -> None:
        """The log is another now: what was said of the old one proves nothing."""
        self._unproven.clear()

    async def close(self) -> None:
        """Ask no more."""
        self._closed = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        # Not cancelled: whoever waits for the answer would take that for a cancellation of its own.
        await asyncio.gather(*self._questions, return_exceptions=True)

    async def _ask_for_all(self) -> int:
        async with self._asking:
            # Whoever comes from here on needs a question of their own: this one may be answered with an older word.
            self._question = None
            return (await self.ask()).last_sequence

    def _answered(self, question: asyncio.Task[int]) -> None:
        self._questions.discard(question)
        if not question.cancelled():
            question.exception()  # seen, also where all who asked went away meanwhile
