"""What the API processes count, told to one another as it is counted: by plain messages, nothing of it in the log.

Every word a process says carries what it counted since its last one, and the number of the last word that it heard from
each of the others. So each knows what all of them have counted, and which part of its own all of them know of.
Whoever says nothing, or does not hear, is soon left out, and without NATS a process is alone: nobody waits long.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from eventstore.connection import Connection
from eventstore.log import LogError

log = structlog.stdlib.get_logger()

SUBJECT = "limits.counts"
SPEAKS_EVERY_S = 1.0
SILENT_AFTER_S = 3.0
GATHERS_S = 0.002
"""What is counted meanwhile is one word."""
WAIT_S = 0.25
MOST_KEYS = 5_000
"""In one word: a message has a mebibyte."""


class Word(Struct, frozen=True, omit_defaults=True):
    """`counts` is by key, and may be less than nothing: what was counted and taken back. `leaves`: the last one."""

    process: str
    number: int
    counts: dict[str, int] = {}
    heard: dict[str, int] = {}
    leaves: bool = False


class _Other(Struct):
    """Another process: its last word's number, the last of ours that it heard, and when it spoke."""

    number: int
    knows: int
    spoke_at: float


class Counts:
    """This process's part. Had from `counting`."""

    def __init__(self, connection: Connection, name: str, on_counted: Callable[[str, int], None]) -> None:
        self._connection = connection
        self._name = name
        self._on_counted = on_counted
        self._others: dict[str, _Other] = {}
        self._number = 0
        self._untold: dict[str, int] = {}
        self._told: deque[tuple[int, dict[str, int]]] = deque()
        self._unknown: dict[str, int] = {}
        self._waiting: list[tuple[int, asyncio.Event]] = []
        self._wake = asyncio.Event()

    @property
    def others(self) -> int:
        """How many other processes count too, as far as is known."""
        if not self._connection.connected:
            return 0
        since = time.monotonic() - SILENT_AFTER_S
        if any(other.spoke_at < since for other in self._others.values()):
            self._drop(lambda other: other.spoke_at < since)
        return len(self._others)

    def unknown(self, key: str) -> int:
        """How much of what was counted here some other process may not know of."""
        return max(0, self._unknown.get(key, 0))

    def count(self, key: str, number: int) -> None:
        """Tell the others."""
        if not self.others:
            return  # whoever comes later was not there
        self._untold[key] = self._untold.get(key, 0) + number
        self._unknown[key] = self._unknown.get(key, 0) + number
        self._wake.set()

    async def known(self, *, within_s: float = WAIT_S) -> None:
        """Return when all others know what was counted here so far, and we what they had counted before they knew.
        Who does not answer in time is left out until it speaks again."""
        if not self.others:
            return
        number = self._number + 1 if self._untold else self._number
        if self._floor() >= number:
            return
        told = asyncio.Event()
        waiting = (number, told)
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(within_s):
                await told.wait()
        except TimeoutError:
            log.info("limits.not_heard", by=[name for name, other in self._others.items() if other.knows < number])
            self._drop(lambda other: other.knows < number)
        finally:
            with suppress(ValueError):
                self._waiting.remove(waiting)

    async def on_word(self, msg: Msg) -> None:
        """Somebody's word; our own come back, too."""
        try:
            word = msgspec.msgpack.decode(msg.data, type=Word)
        except msgspec.MsgspecError as error:
            log.warning("limits.unreadable", error=str(error))
            return
        if word.process == self._name:
            return
        for key, number in word.counts.items():
            self._on_counted(key, number)
        if word.leaves:
            self._drop(lambda other: other is self._others.get(word.process))
            return
        known = self._others.get(word.process)
        # Of words from before it came it will never hear; what is still to be told it will.
        knows = word.heard.get(self._name, known.knows if known else self._number)
        self._others[word.process] = _Other(word.number, knows, time.monotonic())
        if word.counts or known is None:
            self._wake.set()
        self._settle()

    async def speak(self) -> None:
        """Until cancelled: at once where there is something to say, else now and then."""
        while True:
            await self._say()
            await asyncio.sleep(GATHERS_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(SPEAKS_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()

    async def leave(self) -> None:
        """The last word."""
        await self._say(leaves=True)

    async def _say(self, *, leaves: bool = False) -> None:
        if not self._connection.connected:
            self._drop(lambda _: True)
            return
        counts = {key: self._untold.pop(key) for key in list(self._untold)[:MOST_KEYS]}
        if self._untold:
            self._wake.set()
        if counts:
            self._number += 1
            self._told.append((self._number, counts))
        heard = {name: other.number for name, other in self._others.items()}
        word = Word(self._name, self._number, counts, heard, leaves)
        try:
            await self._connection.publish(SUBJECT, msgspec.msgpack.encode(word))
        except LogError as error:
            log.debug("limits.not_told", error=str(error))

    def _drop(self, wanted: Callable[[_Other], bool]) -> None:
        self._others = {name: other for name, other in self._others.items() if not wanted(other)}
        if not self._others:
            self._untold.clear()
        self._settle()

    def _floor(self) -> int:
        """The last word that all others know."""
        return min((other.knows for other in self._others.values()), default=self._number + 1)

    def _settle(self) -> None:
        """Take note of what all others know by now."""
        floor = self._floor()
        while self._told and self._told[0][0] <= floor:
            for key, number in self._told.popleft()[1].items():
                left = self._unknown.get(key, 0) - number
                if left:
                    self._unknown[key] = left
                else:
                    self._unknown.pop(key, None)
        if not self._others:
            self._unknown.clear()
        for number, told in self._waiting:
            if number <= floor:
                told.set()


@asynccontextmanager
async def counting(connection: Connection, name: str, on_counted: Callable[[str, int], None]) -> AsyncGenerator[Counts]:
    """Count with the others while the context lasts, under a name that no other process has; what they count, however
    late, is told to `on_counted`. Raises LogUnavailable."""
    counts = Counts(connection, name, on_counted)
    listening = await connection.subscribe(SUBJECT, counts.on_word)
    speaking = asyncio.create_task(counts.speak())
    try:
        yield counts
    finally:
        speaking.cancel()
        await asyncio.wait({speaking})
        await counts.leave()
        await connection.unsubscribe(listening)
