"""Straight to a client's socket: what our HTTP server lends the answer that it carries, beside ASGI's `send`."""

import asyncio
from collections.abc import Callable
from typing import cast

from litestar.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

NOBODY_WAITS = asyncio.Event()
LINE = "tasktrail.line"
"""The ASGI extension by which our server lends it."""


class HttpLine:
    """One answer's, from its first byte to its last, or until its client leaves."""

    __slots__ = ("_cycle", "_ended", "_flow", "_on_end", "_transport")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._transport = transport
        self._flow = flow
        self._on_end: Callable[[], None] | None = None
        self._ended = False

    def write(self, chunk: bytes, /) -> None:
        """Some of the body, in chunks."""
        self._transport.write(chunk)

    @property
    def full(self) -> bool:
        """Whether the client takes less than it is given."""
        return self._flow.write_paused

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken, and the kernel neither."""
        return self._transport.get_write_buffer_size()

    def settle(self) -> None:
        """Nothing more is read from this client, and nobody asks what it said: let go of that."""
        self._cycle.message_event = NOBODY_WAITS
        cast(list[tuple[bytes, bytes]], self._cycle.scope["headers"]).clear()  # which is the protocol's, too

    def tell_of_end(self, on_end: Callable[[], None]) -> None:
        """Have this called when there is nobody there any more; at once, where that is so already."""
        self._on_end = on_end
        if self._ended:
            self.end()

    def end(self) -> None:
        """There is nobody there any more, or nothing more to be said."""
        self._ended = True
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()


def lent(scope: Scope) -> HttpLine | None:
    """The line of this request's answer; None: its server lends none, or there is something to be read, too."""
    if scope["type"] != "http" or any(
        name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
    ):
        return None
    line = (scope.get("extensions") or {}).get(LINE, {}).get("line")
    return line if isinstance(line, HttpLine) else None
