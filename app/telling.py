"""How a task's stream is told: where its reader begins, in whose words, and over what (an HTTP body, a socket)."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from litestar.types import Message, Scope, Send
from msgspec import Struct

from app.attached import Attached
from app.lines import lent
from app.readers import STALLED_S, Paced, Reader, Straight, Words
from eventstore.log import Recorded
from projections.task import Task

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
ENDED = 1000
TRY_AGAIN = 1013
NOT_YOURS = 1008
"""Close codes of a socket. Its clients take the first for an end, and no other; the last they need not try again."""


class Start(Struct, frozen=True):
    """Where a reader begins; `genuine` judges whether the record there is the one it knows (None: not asked)."""

    after: int
    genuine: Callable[[Recorded], bool] | None = None


class Telling(Protocol):
    """One API's words for one reader of a task. Nothing is said where they are empty."""

    @property
    def opening(self) -> bytes:
        """Said first."""
        ...

    @property
    def ping(self) -> bytes:
        """Said when nothing was for `ping_s` seconds (or sooner)."""
        ...

    @property
    def ping_s(self) -> float: ...

    async def start(self, attached: Attached) -> Start:
        """Raises LogUnavailable."""
        ...

    @property
    def words(self) -> Words:
        """What tells it live, once it has caught up."""
        ...

    def pieces(self, page: list[Recorded] | None, task: Task) -> list[bytes]:
        """What these records are while it catches up; None: forget what you had, it begins again."""
        ...

    async def closing(self, attached: Attached) -> list[bytes]:
        """What is still to be said to whoever has caught up with a task that has ended. Raises LogUnavailable."""
        ...


class Carrier(Protocol):
    """What brings the pieces to the reader. Raises TimeoutError for one that takes nothing for so long."""

    def reader(self, scope: Scope, max_bytes: int) -> Reader:
        """Who hears what is told live over this; it holds so many bytes at most."""
        ...

    async def open(self, send: Send) -> None: ...

    async def carry(self, send: Send, pieces: list[bytes]) -> None: ...

    async def end(self, send: Send) -> None:
        """That was all."""
        ...

    async def cut(self, send: Send, *, for_good: bool) -> None:
        """There is more, but not now, or (`for_good`) not by this token: nothing that looks like an end."""
        ...


class Body:
    """A response's body; a cut leaves it unfinished, and the connection is dropped."""

    def reader(self, scope: Scope, max_bytes: int) -> Reader:
        line = lent(scope)
        return Paced(max_bytes) if line is None else Straight(line, max_bytes)

    async def open(self, send: Send) -> None:
        await in_time(send, {"type": "http.response.start", "status": 200, "headers": HEADERS})

    async def carry(self, send: Send, pieces: list[bytes]) -> None:
        if content := b"".join(pieces):
            await send_body(send, content)

    async def end(self, send: Send) -> None:
        await in_time(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def cut(self, send: Send, *, for_good: bool) -> None:
        # Whoever comes again is told 401, by which every client of a stream knows that it need not come again.
        pass


class Socket:
    """A WebSocket: each piece is a message."""

    def reader(self, scope: Scope, max_bytes: int) -> Reader:
        del scope
        return Paced(max_bytes)

    async def open(self, send: Send) -> None:
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})

    async def carry(self, send: Send, pieces: list[bytes]) -> None:
        for piece in pieces:
            if piece:
                await in_time(send, {"type": "websocket.send", "bytes": None, "text": piece.decode()})

    async def end(self, send: Send) -> None:
        await in_time(send, {"type": "websocket.close", "code": ENDED, "reason": ""})

    async def cut(self, send: Send, *, for_good: bool) -> None:
        code, reason = (NOT_YOURS, "the token is no longer valid") if for_good else (TRY_AGAIN, "cut off: resume")
        await in_time(send, {"type": "websocket.close", "code": code, "reason": reason})


async def send_body(send: Send, content: bytes) -> None:
    """Raises TimeoutError for a client that takes nothing for so long: it may be long gone, and it holds a task."""
    await in_time(send, {"type": "http.response.body", "body": content, "more_body": True})


async def in_time(send: Send, message: Message) -> None:
    """Raises TimeoutError for a client that takes nothing for so long."""
    async with asyncio.timeout(STALLED_S):
        await send(message)
