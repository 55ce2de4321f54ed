"""What the processes of a deployment tell of themselves: one question that all of them hear, and each answers.

Nothing is acknowledged: whoever is dead, stopped or cut off is missing from the answers, and nobody waits for it long.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog
from nats.aio.msg import Msg

from eventstore.connection import Connection
from eventstore.log import LogError
from eventstore.pull import checked_word
from eventstore.queue import WORKER

log = structlog.stdlib.get_logger()

SUBJECT = "figures"
WAIT_S = 0.25
KNOWN_FOR_S = 60.0
"""So long after its last answer a process is waited for."""


@asynccontextmanager
async def telling(connection: Connection, name: str, tell: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[None]:
    """While the context lasts, answer whoever asks, under a name that no other process has. Raises LogUnavailable."""
    checked_word(WORKER, name)

    async def on_question(msg: Msg) -> None:
        if msg.reply:
            await connection.publish(f"{msg.reply}.{name}", await tell())

    listening = await connection.subscribe(SUBJECT, on_question)
    try:
        yield
    finally:
        await connection.unsubscribe(listening)


class _Question:
    """One question: who has answered it, and whose answers would make it whole."""

    def __init__(self, wanted: set[str]) -> None:
        self.answers: dict[str, bytes] = {}
        self.whole = asyncio.Event()
        self._wanted = wanted

    def take(self, name: str, told: bytes) -> None:
        self.answers[name] = told
        if self._wanted and self._wanted <= self.answers.keys():
            self.whole.set()


class Figures:
    """Asks all processes at once. Had from `asking`; it keeps in mind who is there, so as to wait for no longer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._numbers = itertools.count()
        self._open: dict[str, _Question] = {}
        self._heard_at: dict[str, float] = {}
        self.answers = f"{self._inbox}.*.*"

    async def ask(self, *, wait_s: float = WAIT_S) -> dict[str, bytes]:
        """What each process tells, by its name; without NATS, nothing. Never raises, and takes no longer than asked."""
        if not self._connection.connected:
            return {}
        number = str(next(self._numbers))
        question = self._open[number] = _Question(self._known())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._connection.publish(SUBJECT, reply=f"{self._inbox}.{number}")
                    await question.whole.wait()
        except LogError as error:
            log.debug("figures.not_asked", error=str(error))
        finally:
            del self._open[number]
        return question.answers

    def _known(self) -> set[str]:
        since = time.monotonic() - KNOWN_FOR_S
        self._heard_at = {name: at for name, at in self._heard_at.items() if at >= since}
        return set(self._heard_at)

    async def on_answer(self, msg: Msg) -> None:
        """An answer, in time or late."""
        number, name = msg.subject.split(".")[-2:]
        # Also one that came too late for its question: from now on it is known, and waited for.
        self._heard_at[name] = time.monotonic()
        if (question := self._open.get(number)) is not None:
            question.take(name, msg.data)


@asynccontextmanager
async def asking(connection: Connection) -> AsyncGenerator[Figures]:
    """To ask with, while the context lasts. Raises LogUnavailable."""
    figures = Figures(connection)
    listening = await connection.subscribe(figures.answers, figures.on_answer)
    try:
        yield figures
    finally:
        await connection.unsubscribe(listening)
