"""Requests of one connection that wait for their turn: few, and no more are read while there are any."""

from asyncio import Transport
from typing import Protocol

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Few(list[tuple[RequestResponseCycle, ASGI3Application]]):
    """Requests that came before the last was answered: hardly ever any, and uvicorn's own takes 0.7 KB for none."""

    def appendleft(self, asked: tuple[RequestResponseCycle, ASGI3Application]) -> None:
        """One more; uvicorn pops the first."""
        self.insert(0, asked)


class Crowded(Protocol):
    """A connection."""

    @property
    def crowded(self) -> bool:
        """Whether requests wait for their turn."""
        ...


class Flow(FlowControl):
    """uvicorn's, which reads no more while requests wait: each takes memory, and who sends them pays nothing for it."""

    def __init__(self, transport: Transport, connection: Crowded) -> None:
        super().__init__(transport)
        self._connection = connection

    def resume_reading(self) -> None:
        """Read on, if there is room for what comes."""
        if not self._connection.crowded:
            super().resume_reading()
