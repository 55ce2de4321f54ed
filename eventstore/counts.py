"""What the API processes count, told to one another as it is counted: by plain messages, nothing of it in the log.

Every word a process says carries what it counted since its last one, and the number of the last word that it heard from
each of the others. So each knows what all of them have counted, and which part of its own all of them know of.
Whoever says nothing, or does not hear, is soon left out, and without NATS a process is alone: nobody waits long.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Protocol

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from eventstore.connection import Connection
from eventstore.log import LogError

log = structlog.stdlib.get_logger()

SUBJECT = "limits.counts"
PAST_SUBJECT = "limits.past"
SPEAKS_EVERY_S = 1.0
SILENT_AFTER_S = 3.0
GATHERS_S = 0.002
"""What is counted meanwhile is one word."""
TURNS, TURN_S = 50, 0.005
"""So long whoever does not answer is waited for. By turns of the event loop: one that is busy hears late."""
MOST_KEYS = 5_000
"""In one word: a message has a mebibyte."""
MOST_PASTS = 500
"""In one message, as each may be of sixty numbers."""

Ages = list[tuple[float, int]]
"""How many seconds ago, how many."""


class Ledger(Protocol):
    """Where a process keeps what is counted (`app.limits.Limits`, and the tests')."""

    def on_counted(self, key: str, number: int) -> None:
        """Another process counted so many, or (less than none) took them back."""
        ...

    def past(self) -> Iterator[tuple[str, Ages]]:
        """What is counted here, for a process that begins."""
        ...

    def on_past(self, key: str, ages: Ages) -> None:
        """What was counted before this process began."""
        ...


class Word(Struct, frozen=True, omit_defaults=True):
    """`counts` is by key, and may be less than nothing: what was counted and taken back. `leaves`: the last one."""

    process: str
    number: int
    counts: dict[str, int] = {}
    heard: dict[str, int] = {}
    leaves: bool = False


class Past(Struct, frozen=True):
    """What a process that begins is told, by one of those that are there."""

    process: str
    counts: dict[str, Ages]


class _Other(Struct):
    """Another process: its last word's number, the last of ours that it heard, and when it spoke."""

    number: int
    knows: int
    spoke_at: float


class Counts:
    """This process's part. Had from `counting`."""

    def __init__(self, connection: Connection, name: str, ledger: Ledger) -> None:
        self._connection = connection
        self._name = name
        self._ledger = ledger
        self._told_past_by = ""
        self._others: dict[str, _Other] = {}
        self._number = 0
        self._untold: dict[str, int] = {}
        self._told: deque[tuple[int, dict[str, int]]] = deque()
        self._unknown: dict[str, int] = {}
        self._waiting: list[tuple[int, asyncio.Event]] = []
        self._somebody_waits = asyncio.Event()
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

    async def known(self) -> None:
        """Return when all others know what was counted here so far, and we what they had counted before they knew.
        Who does not answer for a quarter of a second is left out until it speaks again."""
        if not self.others:
            return
        number = self._number + 1 if self._untold else self._number
        if self._floor() < number:
            told = asyncio.Event()
            self._waiting.append((number, told))
            self._somebody_waits.set()
            await told.wait()

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
            self._ledger.on_counted(key, number)
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

    async def on_question(self, msg: Msg) -> None:
        """A process that begins asks what was counted before; the first by name answers."""
        if msg.data == self._name.encode() or any(other < self._name for other in self._others):
            return
        past = self._ledger.past()
        while some := dict(islice(past, MOST_PASTS)):
            with suppress(LogError):
                await self._connection.publish(msg.reply, msgspec.msgpack.encode(Past(self._name, some)))

    async def on_past(self, msg: Msg) -> None:
        """An answer to our own question."""
        with suppress(msgspec.MsgspecError):
            past = msgspec.msgpack.decode(msg.data, type=Past)
            # Where two believe that they are the first, one is enough.
            self._told_past_by = self._told_past_by or past.process
            if past.process == self._told_past_by:
                for key, ages in past.counts.items():
                    self._ledger.on_past(key, ages)

    async def speak(self) -> None:
        """Until cancelled: at once where there is something to say, else now and then."""
        while True:
            await self._say()
            await asyncio.sleep(GATHERS_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(SPEAKS_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()

    async def watch(self) -> None:
        """Until cancelled: leave out who keeps others waiting."""
        while True:
            await self._somebody_waits.wait()
            self._somebody_waits.clear()
            while self._waiting:
                number = self._waiting[0][0]
                for _ in range(TURNS):
                    await asyncio.sleep(TURN_S)
                    if self._floor() >= number:
                        break
                else:
                    silent = [name for name, other in self._others.items() if other.knows < number]
                    log.info("limits.not_heard", processes=silent)
                    self._drop(lambda other, number=number: other.knows < number)

    async def leave(self) -> None:
        """The last word; nobody waits any longer."""
        await self._say(leaves=True)
        self._drop(lambda _: True)

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
        with suppress(LogError):  # lost: the others may grant a little more
            await self._connection.publish(SUBJECT, msgspec.msgpack.encode(word))

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
        self._waiting = [(number, told) for number, told in self._waiting if number > floor]


@asynccontextmanager
async def counting(connection: Connection, name: str, ledger: Ledger) -> AsyncGenerator[Counts]:
    """Count with the others while the context lasts, under a name that no other process has. Raises LogUnavailable."""
    counts = Counts(connection, name, ledger)
    inbox = connection.new_inbox()
    listening = [
        await connection.subscribe(SUBJECT, counts.on_word),
        await connection.subscribe(PAST_SUBJECT, counts.on_question),
        await connection.subscribe(inbox, counts.on_past),
    ]
    await connection.publish(PAST_SUBJECT, name.encode(), reply=inbox)
    working = {asyncio.create_task(counts.speak()), asyncio.create_task(counts.watch())}
    try:
        yield counts
    finally:
        for one in working:
            one.cancel()
        await asyncio.wait(working)
        await counts.leave()
        for one in listening:
            await connection.unsubscribe(one)
