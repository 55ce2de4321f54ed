"""Recorded facts -> SSE frames: id, resume, heartbeat, the end. And the ASGI response that writes them.

Our own response, because task streams are what this exists for (docs/decisions/task-streams.md).
"""

import contextlib
import math
from functools import lru_cache

import structlog
from litestar.exceptions import WebSocketDisconnect
from litestar.types import Receive, Scope, Send
from msgspec import Struct

from app.attached import Attached
from app.auth import Principal, Revocations
from app.readers import ENDED, LEFT, Paced, Reader, Straight
from app.streams import Place, Streams, abort_later, gone, until_over
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
REST = "tasktrail.rest"
"""Where, in the state of its request, a stream that goes on without the framework waits for its server: front.py."""
KEPT, SMALL = 1024, 4096
"""So many frames of records of so many bytes are kept: many readers of one task come at the same time."""
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


class TaskStream:
    """An ASGI response: one task's story from where its reader is, to its end. A cut never looks like an end.

    All that was is told in the call, at the pace of the client. What comes is written straight, where the server lends
    its line; then the call is over, and the `rest` is but a wait, outside the framework, which needs no memory for it.
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
        except TimeoutError:
            why = "stalled"
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
        leaving = None if isinstance(self._reader, Straight) else gone(receive)
        return await until_over(self._write(send, wheel), leaving, self._reader)

    def leave(self) -> None:
        """Follow no more."""
        self._attached.leave(self._reader, self._telling.words)
        if self._wheel is not None:
            self._wheel.remove(self._reader, self._spoke)

    async def _write(self, send: Send, wheel: Wheel | None) -> str | None:
        telling, carrier, reader = self._telling, self._carrier, self._reader
        try:
            await carrier.open(send)
            if wheel is not None:  # no sooner: a ping goes straight to the socket, and may not overtake the head
                self._wheel, self._spoke = wheel, wheel.add(reader)
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
            await carrier.end(send)
        except TimeoutError:
            return "stalled"
        except LEFT_BY:
            return LEFT
        except LogError as error:
            log.warning("stream.unreadable", task_id=self._attached.task_id, error=str(error))
            return "unreadable"
        return ENDED

    async def _catch_up(self, send: Send) -> None:
        telling, attached = self._telling, self._attached
        start = await telling.start(attached)
        async for page in self._tasks.catch_up(attached, after=start.after, genuine=start.genuine):
            await self._carrier.carry(send, telling.pieces(page, attached.task))
