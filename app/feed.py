"""Recorded facts -> SSE frames: id, resume, heartbeat, the end. And the ASGI response that writes them.

Our own response, because task streams are what this exists for (docs/decisions/task-streams.md).
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from functools import lru_cache

import structlog
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from app.attached import Attached
from app.auth import Principal, Revocations
from app.bounds import TooManyStreams
from app.readers import ENDED, LEFT, Paced, Reader, Straight
from app.tasks import Tasks
from app.telling import Body, Carrier, Start, Telling
from app.wheel import Wheel
from eventstore.cursor import Cursor, event_id
from eventstore.events import TaskId, tag_of
from eventstore.log import LogError, LogUnavailable, Recorded
from projections.task import Task

log = structlog.stdlib.get_logger()

PING = b": ping\n\n"
RETRY = b"retry: 1000\n\n"
ABORT = "tasktrail.abort"
"""The ASGI extension by which our server lets a response drop its connection."""
REST = "tasktrail.rest"
"""Where, in the state of its request, a stream that goes on without the framework waits for its server: front.py."""
LINGER_S = 2.0
KEPT, SMALL = 1024, 4096
"""So many frames of records of so many bytes are kept: many readers of one task come, or come again, at the same time."""
LEFT_BY = (OSError, WebSocketDisconnect)
"""What a socket raises when its client has left."""


def frame(recorded: Recorded) -> bytes:
    """One fact as one frame; `data:` is the stored record as it is."""
    return _kept_frame(recorded) if len(recorded.stored) <= SMALL else _frame(recorded)


@lru_cache(maxsize=KEPT)
def _kept_frame(recorded: Recorded) -> bytes:
    return _frame(recorded)


def _frame(recorded: Recorded) -> bytes:
    head = f"id: {event_id(recorded)}\nevent: {tag_of(recorded.record.fact)}\ndata: "
    return head.encode() + recorded.stored + b"\n\n"


RESET = b'event: reset\ndata: {"reason": "unknown_cursor"}\n\n'
"""Said to a reader whose cursor is of another life of the log: forget what you had, it begins again."""


class OurCircle(Struct, frozen=True):
    """Those who hear our own API's words."""

    def said(self, recorded: Recorded, task: Task) -> tuple[bytes]:
        """One fact is one frame."""
        del task
        return (frame(recorded),)


class OurWords:
    """Our own API's: one fact is one frame, and the ending fact's is the end."""

    opening = RETRY
    ping = PING
    ping_s = math.inf
    words = OurCircle()

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    async def start(self, attached: Attached) -> Start:
        """After the cursor."""
        del attached
        return Start(self._cursor.sequence, self._cursor.genuine if self._cursor.check is not None else None)

    def pieces(self, page: list[Recorded] | None, task: Task) -> list[bytes]:
        """A frame each."""
        del task
        return [RESET] if page is None else [frame(recorded) for recorded in page]

    async def closing(self, attached: Attached) -> list[bytes]:
        """All was said."""
        del attached
        return []


class Streams:
    """The open streams of one process, so that they can be counted, pinged and, at a stop, cut."""

    def __init__(self, *, max_bytes: int, ping_s: float, per_token: int) -> None:
        self.max_bytes = max_bytes
        self.readers: set[Reader] = set()
        self.ping_s = ping_s
        self._wheels: dict[tuple[bytes, float], Wheel] = {}
        self._per_token = per_token
        self._open_of: Counter[str] = Counter()
        self._draining = False

    def take(self, reader: Reader, principal: Principal) -> None:
        """A place for this reader's stream; `release` it. Raises TooManyStreams."""
        if self.open_of(principal) >= self._per_token and not principal.plan.unlimited:
            raise TooManyStreams(f"at most {self._per_token} streams at once by one token; close one, or come later")
        self.readers.add(reader)
        self._open_of[principal.purse] += 1
        if self._draining:
            reader.cut_off("drain")

    def release(self, reader: Reader, principal: Principal) -> None:
        """Not open any more."""
        self.readers.discard(reader)
        self._open_of[principal.purse] -= 1
        if not self._open_of[principal.purse]:
            del self._open_of[principal.purse]

    def wheel(self, telling: Telling) -> Wheel | None:
        """What pings those who are told so; None: they need none."""
        if not telling.ping:
            return None
        how = telling.ping, min(self.ping_s, telling.ping_s)
        if how not in self._wheels:
            self._wheels[how] = Wheel(*how)
        return self._wheels[how]

    def open_of(self, principal: Principal) -> int:
        """How many streams they have open."""
        return self._open_of.get(principal.purse, 0)

    def drain(self) -> None:
        """Cut them all, and whatever comes: their clients resume elsewhere."""
        self._draining = True
        for reader in list(self.readers):
            reader.cut_off("drain")


class TaskStream:
    """An ASGI response: one task's story from where its reader is, to its end. A cut never looks like an end.

    All that was is told in the call, at the pace of the client. What comes is written straight, where the server lends its
    line; then the call is over, and the `rest` is but a wait, outside the framework, of which nothing stays in memory.
    What is acquired is given back in `finally`, there or here, so a client that leaves early leaks nothing.
    """

    def __init__(
        self,
        tasks: Tasks,
        streams: Streams,
        revocations: Revocations,
        principal: Principal,
        task_id: TaskId,
        telling: Telling,
        carrier: Carrier | None = None,
    ) -> None:
        self._tasks = tasks
        self._streams = streams
        self._revocations = revocations
        self._principal = principal
        self._task_id = task_id
        self._telling = telling
        self._carrier = carrier or Body()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the end, a cut, or the client's leaving; or all that was, and leave the `rest` to its server."""
        self._reader = self._carrier.reader(scope, self._streams.max_bytes)
        self._place = Place(self._streams, self._revocations, self._principal, self._reader)
        self._follow: Follow | None = None
        self._tasks.metrics.open_streams.inc()
        why = ""
        try:
            why = await self._begin(receive, send)
        finally:
            if why is not None:
                self.leave()
        if why is None:
            scope["state"][REST] = self
        else:
            await self._be_over(scope, send, why)

    async def _begin(self, receive: Receive, send: Send) -> str | None:
        await self._revocations.check(self._principal)
        async with self._tasks.attach(self._principal.owner, self._task_id) as attached:
            if not attached.task.version:
                raise LogUnavailable("the log went back")  # the task was there a moment ago; asked again, it is 404
            self._follow = Follow(self._tasks, attached, self._reader, self._telling, self._carrier)
        return await self._follow.begin(receive, send, self._streams.wheel(self._telling))

    async def rest(self, scope: Scope, send: Send) -> None:
        """To the end, a cut, or the client's leaving."""
        try:
            why = await self._reader.over
            if why == ENDED:
                await self._carrier.end(send)
        finally:
            self.leave()
        await self._be_over(scope, send, why)

    def leave(self) -> None:
        """Give back all that it has."""
        if self._follow is not None:
            self._follow.leave()
        self._place.give_back()
        self._tasks.metrics.open_streams.dec()

    async def _be_over(self, scope: Scope, send: Send, why: str) -> None:
        if why in (ENDED, LEFT):
            return
        self._tasks.metrics.streams_cut.labels(why).inc()
        log.info("stream.cut", task_id=self._task_id, why=why)
        abort_later(scope)
        for_good = await self._revocations.for_good(self._principal, why)
        with contextlib.suppress(*LEFT_BY):  # (or takes nothing)
            await self._carrier.cut(send, for_good=for_good)


class Follow:
    """One reader's way through one task: all that was, at the pace of its client; then, with all others, what comes.
    It holds on to the task until it leaves."""

    def __init__(self, tasks: Tasks, attached: Attached, reader: Reader, telling: Telling, carrier: Carrier) -> None:
        self._tasks = tasks
        self._attached = attached
        self._reader = reader
        self._telling = telling
        self._carrier = carrier
        self._wheel: Wheel | None = None
        self._spoke = 0
        attached.readers.add(reader)

    async def begin(self, receive: Receive, send: Send, wheel: Wheel | None) -> str | None:
        """To ENDED, LEFT, or why it was cut off; None: it is told straight from here on."""
        if wheel is not None:
            self._wheel, self._spoke = wheel, wheel.add(self._reader)
        leaving = None if isinstance(self._reader, Straight) else gone(receive)
        return await until_over(self._write(send), leaving, self._reader)

    def leave(self) -> None:
        """Follow no more."""
        self._attached.leave(self._reader, self._telling.words)
        if self._wheel is not None:
            self._wheel.remove(self._reader, self._spoke)

    async def _write(self, send: Send) -> str | None:
        telling, carrier, reader = self._telling, self._carrier, self._reader
        try:
            await carrier.open(send)
            await carrier.carry(send, [telling.opening])
            await self._catch_up(send)
            if self._attached.task.ended:
                await carrier.carry(send, await telling.closing(self._attached))
            else:
                # Nothing was awaited since it had all that there is: it misses nothing, and hears nothing twice.
                self._attached.join(reader, telling.words)
                if not isinstance(reader, Paced):
                    return None
                while pieces := await reader.take():
                    await carrier.carry(send, pieces)
                if reader.over.result() != ENDED:
                    return reader.over.result()
        except TimeoutError:
            return "stalled"
        except LEFT_BY:
            return LEFT
        except LogError as error:
            log.warning("stream.unreadable", task_id=self._attached.task_id, error=str(error))
            return "unreadable"
        await carrier.end(send)
        return ENDED

    async def _catch_up(self, send: Send) -> None:
        telling, attached = self._telling, self._attached
        start = await telling.start(attached)
        async for page in self._tasks.catch_up(attached, after=start.after, genuine=start.genuine):
            await self._carrier.carry(send, telling.pieces(page, attached.task))


class Place:
    """What an open stream holds: a place among those that a drain cuts, and an ear for its token's end."""

    def __init__(self, streams: Streams, revocations: Revocations, principal: Principal, reader: Reader) -> None:
        """Raises TooManyStreams."""
        streams.take(reader, principal)
        revocations.watch(principal, reader.cut_off)
        self._streams = streams
        self._revocations = revocations
        self._principal = principal
        self._reader = reader

    def give_back(self) -> None:
        """All of it. Whoever is about to tell its reader something finds it gone."""
        self._revocations.unwatch(self._principal, self._reader.cut_off)
        self._streams.release(self._reader, self._principal)
        self._reader.cut_off(LEFT)


@contextlib.asynccontextmanager
async def held(
    streams: Streams, revocations: Revocations, principal: Principal, reader: Reader
) -> AsyncGenerator[None]:
    """A place as long as the context lasts. Raises TooManyStreams, NotAuthenticated."""
    place = Place(streams, revocations, principal, reader)
    try:
        await revocations.check(principal)
        yield
    finally:
        place.give_back()


async def until_over(
    writing: Coroutine[None, None, str | None], leaving: Coroutine[None, None, None] | None, reader: Reader
) -> str | None:
    """Write until that is over, the client leaves, or the reader is over: then why. (What was written says why itself.)"""
    written = asyncio.ensure_future(writing)
    works = [written] if leaving is None else [written, asyncio.ensure_future(leaving)]
    try:
        await asyncio.wait({*works, reader.over}, return_when=asyncio.FIRST_COMPLETED)
        if reader.over.done() and reader.over.result() != ENDED:
            return reader.over.result()
        return await written if written.done() or reader.over.done() else LEFT
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


def abort_later(scope: Scope, after_s: float = LINGER_S) -> None:
    """Have the connection dropped: a server's polite closing waits for a client that reads no more, for ever."""
    try:
        extensions = scope["extensions"]
    except KeyError:
        return
    abort = (extensions or {}).get(ABORT, {}).get("abort")
    if callable(abort):
        asyncio.get_running_loop().call_later(after_s, abort)


async def gone(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        continue
