"""HTTP where the answer is at hand: as soon as a request's head is here the front is asked, and what it knows is
written in one piece, without a task and without uvicorn's `send`. `docs/decisions/hot-poll.md` says why.
"""

import asyncio

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from app.front import Front

log = structlog.stdlib.get_logger()

IN_A_ROW = 64
"""So many of what comes in one piece are answered before others have their turn."""
SLICE = 8 * 1024
"""So many bytes are read at once where more came: a request that waits takes 150 times what it came as."""


class AtOnceProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with a front that may answer by itself. What is not plainly a poll, or not the next to be
    answered, or may not be written now, takes uvicorn's way, on which the front is asked again."""

    __slots__ = ("_dated", "_front", "_left", "_unread", "answered")  # serving.py says why

    def __init__(
        self,
        front: Front,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._front = front
        self.answered = False
        self._left = IN_A_ROW
        self._unread = b""
        self._dated: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")

    @property
    def crowded(self) -> bool:
        """Whether requests wait for their turn: no more are read until they have had it."""
        return bool(self.pipeline or self._unread)

    @property
    def answering(self) -> bool:
        """Whether a request has not all of its answer."""
        return self.cycle is not None and not self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]  # uvicorn's is None at first

    def data_received(self, data: bytes) -> None:
        """A piece of a request, or several requests."""
        self._left = IN_A_ROW
        if len(data) <= SLICE and not self.crowded:
            super().data_received(data)
            return
        data, self._unread = self._unread + data, b""
        at = 0
        while at < len(data) and not self.pipeline:
            super().data_received(data[at : at + SLICE])
            at += SLICE
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return  # there is nobody to be answered; or what came with the wish for a socket is lost, as uvicorn's
        self._unread = data[at:]
        if self._unread:
            self.flow.pause_reading()

    def on_response_complete(self) -> None:
        """An answer is at its end."""
        super().on_response_complete()
        if self._unread and not self.pipeline:
            self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._unread and not self.pipeline and not self.transport.is_closing():
            data, self._unread = self._unread, b""
            self.flow.resume_reading()
            self.data_received(data)

    def on_headers_complete(self) -> None:
        """The head is here. What is answered at once has no body."""
        self.answered = self._is_plain() and self._answer()
        if not self.answered:
            # What was answered just before it began to wait for what came in the same piece.
            self._unset_keepalive_if_required()
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of the request is here."""
        if not self.answered:
            super().on_message_complete()

    def _is_plain(self) -> bool:
        """Whether an answer could be written now, and nothing would follow from it but the next request."""
        if self.answering:
            return False  # another's turn
        # Who does not read what they ask for, or asks for very much, has to wait, for which there is uvicorn's way.
        if self.flow.write_paused or self.transport.is_closing() or not self._left:
            return False
        parser = self.parser
        return (
            parser is not None
            and parser.get_method() == b"GET"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
        )

    def _answer(self) -> bool:
        try:
            answer = self._front.at_once(self.root_path, self.root_path + self.url.decode("latin-1"), self.headers)
        except Exception as error:
            log.error("http.fault", path=self.url.decode("latin-1").partition("?")[0], exc_info=error)
            return False  # uvicorn's way has an answer all the same
        if answer is None:
            return False
        more = [b"%b: %b\r\n" % pair for pair in answer.more]
        piece = [STATUS_LINE[answer.status], self._dates(), answer.head.lines, *more, b"\r\n", answer.body]
        self.transport.write(b"".join(piece))
        self._left -= 1
        self.on_response_complete()
        return True

    def _dates(self) -> bytes:
        """What uvicorn says in every answer, as it is written; that changes once a second."""
        headers, written = self._dated
        if headers is not self.server_state.default_headers:
            headers = self.server_state.default_headers
            written = b"".join(b"%b: %b\r\n" % pair for pair in headers)
            self._dated = headers, written
        return written
