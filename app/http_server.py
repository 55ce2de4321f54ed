"""Our server of HTTP: it says when it is ready, and its stop lets nobody wait."""

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from app.rooms import Rooms

LOOK_S = 0.02


class Server(uvicorn.Server):
    """uvicorn, which says when it is ready, and first cuts its streams when told to stop, and answers those who wait:
    they go on elsewhere."""

    def __init__(self, config: uvicorn.Config, rooms: Rooms, on_ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._rooms = rooms
        self._on_ready = on_ready
        self._becoming: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer from now on."""
        await super().startup(sockets)
        self._becoming = asyncio.create_task(self._become_ready())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer no more."""
        if self._becoming is not None:
            self._becoming.cancel()
        await super().shutdown(sockets)

    async def _become_ready(self) -> None:
        while self._rooms.problems:  # noqa: ASYNC110  # no event tells that a tail is proven
            await asyncio.sleep(LOOK_S)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        self._rooms.drain()
        super().handle_exit(sig, frame)
