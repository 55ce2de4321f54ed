"""HTTP itself: uvicorn with our bounds, and a stop that lets nobody wait."""

import asyncio
import signal
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable
from functools import partial

import structlog
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.agents.catalogue import Catalogue
from app.api import build
from app.at_once import AtOnceProtocol
from app.freezing import freeze_soon
from app.front import Front
from app.http_server import Server
from app.lines import LINE, HttpLine
from app.listening import listen
from app.readers import STALLED_S
from app.rooms import Rooms, open_rooms
from app.settings import HttpSettings, LogSettings
from app.sockets import SOCKETS
from app.streams import ABORT
from app.turns import Few, Flow
from app.uploads import BODY_S, SILENCE_S

log = structlog.stdlib.get_logger()

GRACE_S = 5
HEAD_S = 15.0
"""From a connection's begin, or a request's first byte, to the end of the request's head."""
# Later than uploads.py, which still has an answer for its bodies.
CUT_SILENCE_S = SILENCE_S + 5
CUT_BODY_S = BODY_S + 5
CUT_STALLED_S = STALLED_S + 15
"""So long a client may leave what it is told untaken. Later than readers.py and telling.py, which say why they cut."""
MAX_HEAD_BYTES = 64 * 1024
TOO_LARGE_HEAD = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


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
        "_stalled",
    )

    def connection_made(self, transport: Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # as uvicorn's own
        """Somebody is there."""
        self._answering: RequestResponseCycle | None = None
        self._line: HttpLine | None = None
        self._patience: TimerHandle | None = None
        self._stalled: TimerHandle | None = None
        super().connection_made(transport)
        self.pipeline = Few()  # pyright: ignore[reportAttributeAccessIssue]  # uvicorn's is a deque
        self.flow = Flow(transport, self)
        if self.scheme == "https":
            transport.set_write_buffer_limits(HIGH_WATER_LIMIT)  # TLS would hold eight times as much
        self._expect(HEAD_S, HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more."""
        self._expect_nothing()
        for timer in (self._patience, self._stalled):
            if timer is not None:
                timer.cancel()
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
        upgraded = self.transport.get_protocol() is not self
        # Empty lines begin no request, and end uvicorn's own patience.
        if not (self._expecting or self.answering or upgraded or self.timeout_keep_alive_task):
            self._expect(HEAD_S, HEAD_S)

    def handle_websocket_upgrade(self) -> None:
        """From here on it is sockets.py's; but not behind an answer that is not at its end."""
        self._expect_nothing()
        if self.answering:
            # uvicorn would write into that answer, which would never hear again that its client is slow, or has left.
            self._close()
        else:
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """What came is no request: said so, but not into another's answer."""
        if not self.answering:
            super().send_400_response(msg)
        self._close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for a while."""
        self._close()

    def _close(self) -> None:
        """No more than what is written already, and not for ever: who takes nothing would stay in memory."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._be_taken()

    def pause_writing(self) -> None:
        """The client takes less than it is told."""
        super().pause_writing()
        self._be_taken()

    def _be_taken(self) -> None:
        if self._stalled is None:
            self._stalled = self.loop.call_later(CUT_STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        super().resume_writing()
        if self._stalled is not None and not self.transport.is_closing():
            self._stalled.cancel()
            self._stalled = None

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
        if self.transport.is_closing():
            self.answered = True  # as far as it will be: nothing is done that nobody would hear of
            return
        super().on_headers_complete()
        if not self.answered:
            self._expect(CUT_SILENCE_S, CUT_BODY_S)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self.answered:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._expect_nothing()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is at its end, also one that was not to have a body."""
        self._end_line()
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()

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
            if not self.answering:
                self.transport.write(TOO_LARGE_HEAD)
            self._close()
        return False


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
