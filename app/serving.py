"""HTTP itself: uvicorn with our bounds, and a stop that lets nobody wait."""

import asyncio
import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from functools import partial
from types import FrameType

import structlog
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.agents.catalogue import Catalogue
from app.api import build
from app.at_once import AtOnceProtocol
from app.freezing import freeze_soon
from app.front import Front
from app.lines import LINE, HttpLine
from app.listening import listen
from app.rooms import Rooms, open_rooms
from app.settings import HttpSettings, LogSettings
from app.sockets import SOCKETS
from app.streams import ABORT
from app.uploads import BODY_S, SILENCE_S

log = structlog.stdlib.get_logger()

GRACE_S = 5
HEAD_S = 15.0
"""From a connection's begin, or a request's first byte, to the end of the request's head."""
# Later than uploads.py, which still has an answer for its bodies.
CUT_SILENCE_S = SILENCE_S + 5
CUT_BODY_S = BODY_S + 5
LOOK_S = 0.02
MAX_HEAD_BYTES = 64 * 1024
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Few(list[tuple[RequestResponseCycle, ASGI3Application]]):
    """Requests that came before the last was answered: hardly ever any, and uvicorn's own takes 0.7 KB for none."""

    def appendleft(self, asked: tuple[RequestResponseCycle, ASGI3Application]) -> None:
        """One more; uvicorn pops the first."""
        self.insert(0, asked)


class Protocol(AtOnceProtocol):
    """uvicorn's HTTP, which lets a response drop its connection (feed.py says why), and drops whoever does not end what
    they ask. Who has said all waits for as long as the answer takes; between requests `timeout_keep_alive` counts."""

    # In its dictionary, these would be too many for Python to share their names among all connections: 1.4 KB each.
    __slots__ = (
        "_answering",
        "_expecting",
        "_head_bytes",
        "_heard",
        "_in_all_s",
        "_line",
        "_patience",
        "_silence_s",
        "_since",
    )

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn's own
        """Somebody is there."""
        self._answering: RequestResponseCycle | None = None
        self._line: HttpLine | None = None
        self._patience: TimerHandle | None = None
        super().connection_made(transport)
        self.pipeline = Few()  # pyright: ignore[reportAttributeAccessIssue]  # uvicorn's is a deque
        self._expect(HEAD_S, HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._expect_nothing()
        if self._patience:
            self._patience.cancel()
        super().connection_lost(exc)
        if self._answering is not None and not self._answering.response_complete:
            # uvicorn tells only the last of several requests that came at once, which has not begun yet.
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._end_line()

    def data_received(self, data: bytes) -> None:
        """A piece of a request, or several requests."""
        self._heard = self.loop.time()
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]  # uvicorn's is None at first
        upgraded = self.transport.get_protocol() is not self
        # Empty lines begin no request, and end uvicorn's own patience.
        if not (self._expecting or answering or upgraded or self.timeout_keep_alive_task):
            self._expect(HEAD_S, HEAD_S)

    def handle_websocket_upgrade(self) -> None:
        """From here on it is sockets.py's."""
        self._expect_nothing()
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._expect(HEAD_S, HEAD_S)
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        if self._has_room(len(url)):
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        if self._has_room(len(name) + len(value)):
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here; whether a body follows is not known yet."""
        super().on_headers_complete()
        if not self.answered:
            self._expect(CUT_SILENCE_S, CUT_BODY_S)

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._expect_nothing()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is at its end, also one that was not to have a body."""
        self._end_line()
        super().on_response_complete()

    def _end_line(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.end()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, app)
        self._answering = cycle
        self._line = HttpLine(self.transport, self.flow, cycle)
        cycle.scope["extensions"] = {ABORT: {"abort": self.transport.abort}, LINE: {"line": self._line}}

    def _expect(self, silence_s: float, in_all_s: float) -> None:
        self._expecting = True
        self._since = self._heard = self.loop.time()
        self._silence_s, self._in_all_s = silence_s, in_all_s
        self._look_at(self._since + min(silence_s, in_all_s))

    def _expect_nothing(self) -> None:
        self._expecting = False

    def _look_at(self, at: float) -> None:
        """A timer that is set already, and no later, serves: one for each request would cost every poll."""
        if self._patience is not None:
            if self._patience.when() <= at:
                return
            self._patience.cancel()
        self._patience = self.loop.call_at(at, self._look)

    def _look(self) -> None:
        self._patience = None
        if not self._expecting:
            return
        now = self.loop.time()
        if self.flow.read_paused:  # we are the slow ones
            self._since = self._heard = now
        left_s = min(self._heard + self._silence_s, self._since + self._in_all_s) - now
        if left_s > 0:
            self._look_at(now + left_s)
        else:
            self.transport.abort()

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


def spoken(front: Front) -> type[asyncio.Protocol]:
    """HTTP as uvicorn takes it, with this front."""
    return partial(Protocol, front)  # pyright: ignore[reportReturnType]  # uvicorn calls it, and asks for no more


async def answer(
    log_to: LogSettings,
    http: HttpSettings,
    agents: Catalogue,
    views_url: str | None,
    fd: int | None,
    told: Callable[[], None],
) -> None:
    """Be an API process, on the socket that was inherited or one of its own. `told` is called when it is ready."""
    listening = await listen(http.host, http.port) if fd is None else socket.socket(fileno=fd)

    def on_ready() -> None:
        log.info("api.ready", host=http.host, port=listening.getsockname()[1])
        told()

    with listening:
        async with open_rooms(log_to, http, agents, views_url) as rooms:
            freeze_soon()
            await serve(build(rooms), rooms, listening, on_ready)


async def serve(front: Front, rooms: Rooms, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer on this socket until SIGTERM or SIGINT. `on_ready` is called once, when it first could say so itself."""
    http = rooms.http
    config = uvicorn.Config(
        front,  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and uvicorn's differ in name
        http=spoken(front),
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
    server = Server(config, rooms, on_ready)
    # uvicorn raises the signal again when it has stopped, which would end the process before the rooms are closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    await server._serve([listening])  # pyright: ignore[reportPrivateUsage]  # serve() would install its own handlers
