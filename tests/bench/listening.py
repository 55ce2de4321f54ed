"""Many readers of one SSE stream, by an asyncio protocol that only counts events, or looks when each was emitted."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from msgspec import Struct

BLANK = re.compile(rb"\r?\n\r?\n")
LOOK_S = 0.05
AT_ONCE = 50
"""Connections that are opened side by side: a listener's queue of them is short."""

Stamp = Callable[[bytes], float]
"""When the event of a frame was emitted, in seconds as `time.time` counts them."""


class Heard(Struct):
    """What all readers together read, from the first event to the last. `late_ms`: from emitted to read, of each event
    that was looked at. `busy` is the part of a core that reading took: near 1, it was the readers that could not go
    faster."""

    events: int
    seconds: float
    late_ms: list[float]
    busy: float


class Reader(asyncio.Protocol):
    """One connection. `marker` is what every event has once, and nothing else has."""

    def __init__(self, marker: bytes) -> None:
        self.began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events, self.first, self.last = 0, 0.0, 0.0
        self.late_ms: list[float] = []
        self.stamp: Stamp | None = None
        self._marker = marker
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        now = time.time()
        if not self.began.done():
            self._begin(data)
        if self.stamp is None:
            seen = (self._rest + data).count(self._marker)
            self._rest = data[-len(self._marker) + 1 :]
        else:
            *frames, self._rest = BLANK.split(self._rest + data)
            found = [frame for frame in frames if self._marker in frame]
            self.late_ms += [(now - self.stamp(frame)) * 1000 for frame in found]
            seen = len(found)
        if seen:
            self.first = self.first or now
            self.events += seen
            self.last = now

    def _begin(self, data: bytes) -> None:
        status = data.split(b"\r\n", 1)[0]
        if b" 200 " in status:
            self.began.set_result(None)
        else:
            self.began.set_exception(ConnectionError(f"a stream was refused: {data[:500]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.began.done():
            self.began.set_exception(ConnectionError("a stream was cut before it began"))


class Readers:
    """So many of one stream, each of which has had its head. Build with `reading`."""

    def __init__(self, readers: list[Reader]) -> None:
        self._readers = readers

    def begin(self, stamp: Stamp | None = None) -> None:
        """Forget what came so far; with `stamp`, look when each event was emitted."""
        for reader in self._readers:
            reader.events, reader.first, reader.last, reader.stamp = 0, 0.0, 0.0, stamp
            reader.late_ms.clear()

    async def hear(self, each: int, within_s: float) -> Heard:
        """Until every reader has so many events, or the time is over."""
        since, spent = time.time(), time.process_time()
        wanted = each * len(self._readers)
        while self._events < wanted and time.time() - since < within_s:  # noqa: ASYNC110  # nobody is told of each
            await asyncio.sleep(LOOK_S)
        heard = [reader for reader in self._readers if reader.events]
        seconds = max((reader.last for reader in heard), default=0) - min((reader.first for reader in heard), default=0)
        busy = (time.process_time() - spent) / (time.time() - since)
        late_ms = [late for reader in self._readers for late in reader.late_ms]
        return Heard(self._events, seconds, late_ms, busy)

    @property
    def _events(self) -> int:
        return sum(reader.events for reader in self._readers)


@asynccontextmanager
async def reading(url: str, headers: Mapping[str, str], marker: bytes, count: int) -> AsyncGenerator[Readers]:
    """So many readers of this stream. Raises ConnectionError where one is refused."""
    address = urlsplit(url)
    target = address.path + (f"?{address.query}" if address.query else "")
    heads = {"Host": address.netloc, "Accept": "text/event-stream", **headers}
    request = "\r\n".join([f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in heads.items()), "", ""])
    loop = asyncio.get_running_loop()
    transports: list[asyncio.BaseTransport] = []
    readers: list[Reader] = []

    async def connect() -> None:
        transport, reader = await loop.create_connection(
            lambda: Reader(marker), address.hostname or "127.0.0.1", address.port or 80
        )
        transports.append(transport)
        readers.append(reader)
        transport.write(request.encode())
        await reader.began

    try:
        for place in range(0, count, AT_ONCE):
            await asyncio.gather(*(connect() for _ in range(min(AT_ONCE, count - place))))
        yield Readers(readers)
    finally:
        for transport in transports:
            transport.close()
