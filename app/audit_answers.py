"""The audit feed as it is written: SSE or NDJSON, each a response that a cut breaks: it never looks like an end.

SSE is sse-starlette's. It is imported here and nowhere else: at its import it puts itself before uvicorn's way to stop.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Literal

import structlog
from litestar.types import Receive, Scope, Send
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError

from app import telling
from app.audit_feed import AuditFeeds, Question, Reading
from app.auth import Principal, Revocations
from app.feed import RESET, RETRY
from app.metrics import Metrics
from app.readers import LEFT, Reader
from app.streams import Streams, abort_later, gone, held, until_over
from app.telling import send_body
from eventstore.cursor import event_id
from eventstore.log import Arrival, LogError, LogIsAnother
from projections.cloudevents import cloudevent_of, type_of

log = structlog.stdlib.get_logger()

SLICE = 64 * 1024
"""Bytes that are written at once."""
LAST, OWNER = "Tasktrail-Last-Sequence", "Tasktrail-Owner"
NDJSON = "application/x-ndjson"

Render = Callable[[Arrival], bytes]


def as_cloudevent(arrival: Arrival) -> bytes:
    """One structured CloudEvent a line, with its end."""
    return cloudevent_of(arrival) + b"\n"


class AuditStream:
    """An ASGI response: the log from where a reader is. Everything is acquired in the call and given back in it: a
    generator that never starts never comes to its `finally`."""

    def __init__(
        self,
        feeds: AuditFeeds,
        streams: Streams,
        revocations: Revocations,
        metrics: Metrics,
        *,
        principal: Principal,
        question: Question,
        kind: Literal["sse", "ndjson"],
        render: Render,
    ) -> None:
        self._feeds = feeds
        self._streams = streams
        self._revocations = revocations
        self._metrics = metrics
        self._principal = principal
        self._question = question
        self._sse = kind == "sse"
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write to the end (if there is one), a cut, or the client's leaving.

        Raises TooManyFeeds, UnknownCursor, NotAuthenticated, LogUnavailable: before anything was written.
        """
        reader = Reader()
        with self._feeds.place(self._principal.owner):
            async with (
                held(self._streams, self._revocations, self._principal, reader),
                self._feeds.reading(self._question, resets=self._sse) as reading,
            ):
                if self._sse:
                    # It listens for the client's leaving itself.
                    writing, leaving = self._write_sse(reading, scope, receive, send), None
                else:
                    writing, leaving = self._write_lines(reading, send), gone(receive)
                why = await until_over(writing, leaving, reader)
        if why not in (None, LEFT):
            self._metrics.streams_cut.labels(why).inc()
            log.info("stream.cut", owner=self._principal.owner, feed="audit", why=why)
            abort_later(scope)

    async def _write_sse(self, reading: Reading, scope: Scope, receive: Receive, send: Send) -> str | None:
        # Our own drain cuts the feeds, before uvicorn's end; its global flag would never be taken back.
        AppStatus.disable_automatic_graceful_drain()
        response = EventSourceResponse(
            self._frames(reading),
            headers={"Cache-Control": "no-cache", LAST: str(reading.last)},
            ping=self._streams.ping_s,
            sep="\n",
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=telling.STALLED_S,
        )
        return await _cut_by(response(scope, receive, send))  # pyright: ignore[reportArgumentType]  # starlette's ASGI types and litestar's differ in name

    async def _write_lines(self, reading: Reading, send: Send) -> str | None:
        headers = [
            (b"content-type", NDJSON.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (LAST.lower().encode(), str(reading.last).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        return await _cut_by(self._send_lines(reading, send))

    async def _send_lines(self, reading: Reading, send: Send) -> None:
        async with aclosing(_slices(reading, self._render, ping_s=self._streams.ping_s, ping=b"\n")) as slices:
            async for piece in slices:
                await send_body(send, piece)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _frames(self, reading: Reading) -> AsyncGenerator[bytes]:
        yield RETRY
        if reading.reset:
            yield RESET
        async with aclosing(_slices(reading, self._frame, ping_s=self._streams.ping_s, ping=b"")) as slices:
            async for piece in slices:
                yield piece

    def _frame(self, arrival: Arrival) -> bytes:
        head = f"id: {event_id(arrival)}\nevent: {type_of(arrival)}\ndata: "
        return head.encode() + self._render(arrival) + b"\n"


async def _slices(reading: Reading, render: Render, *, ping_s: float, ping: bytes) -> AsyncGenerator[bytes]:
    """All that is to be written, some records at a time; and a ping where nothing was for so long."""
    now = asyncio.get_running_loop().time
    pinged_at = now()
    while not reading.over:
        rendered: list[bytes] = []
        size = 0
        for arrival in await reading.take(within_s=max(0.0, pinged_at + ping_s - now())):
            rendered.append(render(arrival))
            size += len(rendered[-1])
            if size >= SLICE:
                yield b"".join(rendered)
                rendered, size, pinged_at = [], 0, now()
        if rendered:
            yield b"".join(rendered)
            pinged_at = now()
        elif now() - pinged_at >= ping_s:
            pinged_at = now()
            if ping:
                yield ping
        # What waits in memory is taken without waiting: others have their turn all the same.
        await asyncio.sleep(0)


async def _cut_by(writing: Awaitable[None]) -> str | None:
    """Why this writing was cut off; None: it came to its end, or the client left."""
    try:
        await writing
    except LogIsAnother:
        return "went_back"
    except (TimeoutError, SendTimeoutError):
        return "stalled"
    except LogError as error:
        log.warning("stream.unreadable", feed="audit", error=str(error))
        return "unreadable"
    return None
