"""Recorded facts -> SSE frames: id, resume, heartbeat, the end. And the ASGI response that writes them.

Our own response, because task streams are what this exists for (docs/decisions/task-streams.md).
"""

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine

import structlog
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Receive, Scope, Send

from app.attached import Attached, Cut, Reader
from app.auth import Principal, Revocations
from app.bounds import TooManyStreams
from app.tasks import Tasks
from app.telling import Body, Carrier, Start, Telling
from eventstore.cursor import Cursor, event_id
from eventstore.events import TaskId, tag_of
from eventstore.log import LogError, LogUnavailable, Recorded
from projections.task import Task

log = structlog.stdlib.get_logger()

PING = b": ping\n\n"
RETRY = b"retry: 1000\n\n"
ABORT = "tasktrail.abort"
"""The ASGI extension by which our server lets a response drop its connection."""
LINGER_S = 2.0
LEFT = (OSError, WebSocketDisconnect)
"""What a socket raises when its client has left."""


def frame(recorded: Recorded) -> bytes:
    """One fact as one frame; `data:` is the stored record as it is."""
    head = f"id: {event_id(recorded)}\nevent: {tag_of(recorded.record.fact)}\ndata: "
    return head.encode() + recorded.stored + b"\n\n"


RESET = b'event: reset\ndata: {"reason": "unknown_cursor"}\n\n'
"""Said to a reader whose cursor is of another life of the log: forget what you had, it begins again."""


class OurWords:
    """Our own API's: one fact is one frame, and the ending fact's is the end."""

    opening = RETRY
    ping = PING
    ping_s = math.inf

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
    """The open streams of one process, so that they can be counted and, at a stop, cut."""

    def __init__(self, *, max_bytes: int, ping_s: float, per_token: int) -> None:
        self.max_bytes = max_bytes
        self.ping_s = ping_s
        self.readers: set[Reader] = set()
        self._per_token = per_token
        self._open_of: Counter[str] = Counter()
        self._draining = False

    def reader(self, principal: Principal) -> Reader:
        """A reader for one stream; `release` it. Raises TooManyStreams."""
        if self.open_of(principal) >= self._per_token and not principal.plan.unlimited:
            raise TooManyStreams(f"at most {self._per_token} streams at once by one token; close one, or come later")
        reader = Reader(self.max_bytes)
        self.readers.add(reader)
        self._open_of[principal.purse] += 1
        if self._draining:
            reader.cut_off("drain")
        return reader

    def release(self, reader: Reader, principal: Principal) -> None:
        """Not open any more."""
        self.readers.discard(reader)
        self._open_of[principal.purse] -= 1
        if not self._open_of[principal.purse]:
            del self._open_of[principal.purse]

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
    Everything is acquired in the call and released in its `finally`, so a client that leaves early leaks nothing.
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
        """Write until the end, a cut, or the client's leaving."""
        self._tasks.metrics.open_streams.inc()
        try:
            async with (
                held(self._streams, self._revocations, self._principal) as (reader, revoked),
                self._tasks.attach(self._principal.owner, self._task_id) as attached,
            ):
                if not attached.task.version:
                    raise LogUnavailable("the log went back")  # the task was there a moment ago; asked again, it is 404
                attached.readers.add(reader)
                try:
                    writing = self._write(attached, reader, send)
                    why = await until_over(writing, gone(receive), revoked, reader.cut)
                finally:
                    attached.readers.discard(reader)
        finally:
            self._tasks.metrics.open_streams.dec()
        if why is not None:
            self._tasks.metrics.streams_cut.labels(why).inc()
            log.info("stream.cut", task_id=self._task_id, why=why)
            abort_later(scope)
            for_good = await self._revocations.for_good(self._principal, why)
            with contextlib.suppress(*LEFT):  # (or takes nothing)
                await self._carrier.cut(send, for_good=for_good)

    async def _write(self, attached: Attached, reader: Reader, send: Send) -> str | None:
        telling, carrier = self._telling, self._carrier
        try:
            await carrier.open(send)
            await carrier.carry(send, [telling.opening])
            start = await telling.start(attached)
            pages = self._tasks.follow(attached, reader, after=start.after, genuine=start.genuine)
            ping_s = min(self._streams.ping_s, telling.ping_s)
            async with contextlib.aclosing(_with_pings(pages, ping_s)) as pinged:
                async for page in pinged:
                    said = [telling.ping] if page == [] else telling.pieces(page, attached.task)
                    await carrier.carry(send, said)
            await carrier.carry(send, await telling.closing(attached))
        except Cut as cut:
            return str(cut)
        except TimeoutError:
            return "stalled"
        except LEFT:
            return None
        except LogError as error:
            log.warning("stream.unreadable", task_id=self._task_id, error=str(error))
            return "unreadable"
        await carrier.end(send)
        return None


@contextlib.asynccontextmanager
async def held(
    streams: Streams, revocations: Revocations, principal: Principal
) -> AsyncGenerator[tuple[Reader, asyncio.Future[str]]]:
    """What an open stream holds: a place among those that a drain cuts, and an ear for its token's end.

    Raises TooManyStreams, NotAuthenticated.
    """
    reader = streams.reader(principal)
    revoked = revocations.watch(principal)
    try:
        await revocations.check(principal)
        yield reader, revoked
    finally:
        revocations.unwatch(principal, revoked)
        streams.release(reader, principal)


async def until_over(
    writing: Coroutine[None, None, str | None],
    leaving: Coroutine[None, None, None],
    revoked: asyncio.Future[str],
    cut: asyncio.Future[str],
) -> str | None:
    """Write to the end, until the client leaves, or until a cut: then why. (None: it came to its end, or they left.)"""
    works = asyncio.ensure_future(writing), asyncio.ensure_future(leaving)
    written = works[0]
    try:
        await asyncio.wait({*works, revoked, cut}, return_when=asyncio.FIRST_COMPLETED)
        if revoked.done():
            return revoked.result()
        if written.done():
            return written.result()
        return cut.result() if cut.done() else None
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


async def _with_pings(
    pages: AsyncGenerator[list[Recorded] | None], every_s: float
) -> AsyncGenerator[list[Recorded] | None]:
    """The pages, and an empty one whenever nothing came for so long."""
    async with contextlib.aclosing(pages):
        while True:
            page = asyncio.ensure_future(_next(pages))
            try:
                while not (await asyncio.wait({page}, timeout=every_s))[0]:
                    yield []
            finally:
                page.cancel()  # no harm to one that is done; and its outcome is looked at in any case
                await asyncio.gather(page, return_exceptions=True)
            found = page.result()
            if isinstance(found, tuple):
                return
            yield found


END: tuple[Recorded, ...] = ()


async def _next(pages: AsyncGenerator[list[Recorded] | None]) -> list[Recorded] | tuple[Recorded, ...] | None:
    try:
        return await anext(pages)
    except StopAsyncIteration:
        return END


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
