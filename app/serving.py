"""HTTP itself: uvicorn with our bounds, and a stop that lets nobody wait."""

import asyncio
import signal
import socket
from types import FrameType

import uvicorn
from litestar.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.feed import ABORT
from app.rooms import Rooms
from app.sockets import SOCKETS

GRACE_S = 5
MAX_HEAD_BYTES = 64 * 1024
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP, which lets a response drop its connection (feed.py says why)."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        if self._has_room(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self._has_room(len(name) + len(value)):
            super().on_header(name, value)

    def _has_room(self, more: int) -> bool:
        """The parser has no limits of its own; a head without an end would fill the memory."""
        self._head_bytes += more
        if self._head_bytes <= MAX_HEAD_BYTES:
            return True
        if not self.transport.is_closing():
            self.transport.write(TOO_LARGE_HEAD)
            self.transport.close()
        return False


class Server(uvicorn.Server):
    """uvicorn, which first cuts its streams when told to stop, and answers those who wait: they go on elsewhere."""

    def __init__(self, config: uvicorn.Config, rooms: Rooms) -> None:
        super().__init__(config)
        self._rooms = rooms

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        self._rooms.drain()
        super().handle_exit(sig, frame)


async def serve(app: ASGIApp, rooms: Rooms, listening: socket.socket) -> None:
    """Answer on this socket until SIGTERM or SIGINT."""
    http = rooms.http
    config = uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and uvicorn's differ in name
        http=Protocol,
        **SOCKETS,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        root_path=http.root_path,
        forwarded_allow_ips=http.forwarded_allow_ips,
        ssl_certfile=http.ssl_certfile,
        ssl_keyfile=str(http.ssl_keyfile) if http.ssl_keyfile else None,
        timeout_graceful_shutdown=GRACE_S,
        backlog=2048,
    )
    server = Server(config, rooms)
    # uvicorn raises the signal again when it has stopped, which would end the process before the rooms are closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    await server._serve([listening])  # pyright: ignore[reportPrivateUsage]  # serve() would install its own handlers
