"""Those who follow a task: what it says is put into words once for all who hear the same; nobody waits for anybody.

A `Circle` is told each fact as it is applied, and tells its readers at the loop's next turn all that came by then, in
one piece. A reader whose client does not keep up holds so many bytes, and is cut off when it would hold more.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import structlog
from msgspec import Struct

from eventstore.log import Recorded
from projections.task import Task

log = structlog.stdlib.get_logger()

ENDED = "ended"
LEFT = "left"
AT_ONCE = 512
"""Readers that are told something before others have their turn in the loop."""
STALLED_S = 60.0
"""So long a client may take less than it is told."""


class Line(Protocol):
    """Straight to a client's socket."""

    def write(self, chunk: bytes, /) -> object:
        """Some of an HTTP/1.1 body, in chunks. Never waits."""
        ...

    @property
    def full(self) -> bool:
        """Whether the client takes less than it is given."""
        ...

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken, and the kernel neither."""
        ...

    def tell_of_end(self, on_end: Callable[[], None]) -> None:
        """Have this called when there is nobody there any more; at once, where that is so already."""
        ...


class Words(Hashable, Protocol):
    """What a fact is to those who hear these words; equal ones are one circle. Nothing is said where they are empty."""

    def said(self, recorded: Recorded, task: Task) -> Sequence[bytes]:
        """A fact, told live; the task is as it was just after it."""
        ...


class Said:
    """Something that many are told: its pieces, and all of them as one chunk of an HTTP/1.1 body."""

    __slots__ = ("_chunk", "pieces", "size")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.size = sum(map(len, pieces))
        self._chunk = b""

    @property
    def chunk(self) -> bytes:
        """Made once."""
        if not self._chunk:
            self._chunk = b"%x\r\n%b\r\n" % (self.size, b"".join(self.pieces))
        return self._chunk


class Reader:
    """Whoever has a stream open until it is `over`: ENDED, LEFT, or why it was cut off."""

    __slots__ = ("over", "said_at")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[str] = loop.create_future()
        self.said_at = loop.time()

    def hear(self, said: Said, at: float) -> None:
        """Something is said, at this time of the loop. Never waits."""
        raise NotImplementedError

    def look(self, at: float) -> None:
        """Whether the client still takes what it is told; asked now and then."""

    def cut_off(self, why: str) -> None:
        """No more for this reader."""
        if not self.over.done():
            self.over.set_result(why)


def tell(reader: Reader, said: Said, at: float) -> None:
    """Have a reader hear it, or be cut off: what is wrong with one of them is no matter of all others."""
    try:
        reader.hear(said, at)
    except Exception:
        log.exception("stream.not_told")
        reader.cut_off("fault")


class Straight(Reader):
    """Written to the client's socket from where it is said: it costs no task, and its bytes are all others', too."""

    __slots__ = ("_line", "_max_bytes", "_stalled_at")

    def __init__(self, line: Line, max_bytes: int) -> None:
        super().__init__()
        self._line = line
        self._max_bytes = max_bytes
        self._stalled_at: float | None = None
        line.tell_of_end(self._left)

    def hear(self, said: Said, at: float) -> None:
        """Into the socket, or its buffer."""
        if self.over.done():
            return
        self.said_at = at
        line = self._line
        if line.full and line.waiting + said.size > self._max_bytes:
            self.cut_off("slow")
            return
        line.write(said.chunk)

    def look(self, at: float) -> None:
        """Who has been full for too long is cut off: its client may be long gone, and it holds a task."""
        if not self._line.full:
            self._stalled_at = None
        elif self._stalled_at is None:
            self._stalled_at = at
        elif at - self._stalled_at > STALLED_S:
            self.cut_off("stalled")

    def _left(self) -> None:
        self.cut_off(LEFT)


class Paced(Reader):
    """What is said waits here until it is taken: for what is no HTTP body, or another server's."""

    __slots__ = ("_bytes", "_max_bytes", "_waiting", "_woken")

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._woken = asyncio.Event()
        self.over.add_done_callback(lambda _: self._woken.set())

    def hear(self, said: Said, at: float) -> None:
        """Into the queue."""
        if self.over.done():
            return
        self.said_at = at
        self._bytes += said.size
        if self._bytes > self._max_bytes:
            self.cut_off("slow")
            return
        self._waiting += said.pieces
        self._woken.set()

    async def take(self) -> list[bytes]:
        """All that waits, as soon as something does; none when it is over."""
        while not self._waiting and not self.over.done():
            self._woken.clear()
            await self._woken.wait()
        taken, self._waiting, self._bytes = self._waiting, [], 0
        return taken


class _Round(Struct):
    """Something that is being told to those who were there."""

    said: Said
    readers: Iterator[Reader]
    ending: bool


class Circle:
    """The readers of one task who hear the same words, all of whom have heard all that was before."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._readers: dict[Reader, None] = {}
        self._facts: list[tuple[Recorded, Task]] = []
        self._rounds: deque[_Round] = deque()
        self._loop = asyncio.get_running_loop()
        self._due = False

    def __bool__(self) -> bool:
        return bool(self._readers)

    def join(self, reader: Reader) -> None:
        """From now on; what is yet to be told of before, this one has heard."""
        self._gather()
        self._readers[reader] = None

    def leave(self, reader: Reader) -> None:
        """No more."""
        self._readers.pop(reader, None)

    def say(self, recorded: Recorded, task: Task) -> None:
        """A fact, once. Nobody is told before the loop's next turn: no reader can hold up, or break, who wrote it."""
        self._facts.append((recorded, task))
        if not self._due:
            self._due = True
            self._loop.call_soon(self._tell)

    def _gather(self) -> None:
        """Put into words what was said, for those who are here now."""
        facts, self._facts = self._facts, []
        if not facts:
            return
        try:
            pieces = [piece for recorded, task in facts for piece in self._words.said(recorded, task)]
        except Exception:
            log.exception("stream.no_words", task_id=facts[0][0].task_id)
            for reader in list(self._readers):
                reader.cut_off("fault")
            return
        self._rounds.append(_Round(Said(pieces), iter(tuple(self._readers)), facts[-1][1].ended))

    def _tell(self) -> None:
        at, left = self._loop.time(), AT_ONCE
        while left > 0 and (self._rounds or self._facts):
            if not self._rounds:
                self._gather()  # all that came while the round before was told: the more there is, the more is joined
            left -= self._go_on(self._rounds[0], at, left) if self._rounds else 0
        self._due = bool(self._rounds or self._facts)
        if self._due:
            self._loop.call_soon(self._tell)

    def _go_on(self, turn: _Round, at: float, at_most: int) -> int:
        """Tell some more of them; how many."""
        some = list(islice(turn.readers, at_most))
        if turn.said.size:
            for reader in some:
                tell(reader, turn.said, at)
        if turn.ending:
            for reader in some:
                reader.cut_off(ENDED)
        if len(some) < at_most:
            self._rounds.popleft()
        return len(some)
