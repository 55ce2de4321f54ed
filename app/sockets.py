"""uvicorn's WebSockets: kept alive, bounded, and ready to be dropped."""

from typing import TypedDict

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from app.streams import ABORT

NO_SOCKET = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, which lets an application drop its connection (feed.py says why)."""

    def handle_connect(self, event: Request) -> None:
        """A client asks for a socket. The application begins after this."""
        super().handle_connect(event)
        if not self.transport.is_closing():
            self.scope["extensions"] = {**(self.scope.get("extensions") or {}), ABORT: {"abort": self.transport.abort}}

    def data_received(self, data: bytes) -> None:
        """A piece of what the client says, its head first."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            # A head that is no socket's (it speaks of a body, say), about which uvicorn would be silent for ever.
            self.transport.write(NO_SOCKET)
            self.transport.close()

    async def send(self, message: ASGISendEvent) -> None:
        """What the application says."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # refused over HTTP: uvicorn would complain that nothing was accepted


class SocketSettings(TypedDict):
    """What `uvicorn.Config` is told of them."""

    ws: type[SocketProtocol]
    ws_max_size: int
    ws_ping_interval: float
    ws_ping_timeout: float
    ws_per_message_deflate: bool


SOCKETS: SocketSettings = {
    "ws": SocketProtocol,
    # Nothing that a client says is read, so it need not say much; and a stream is not compressed for each reader anew.
    "ws_max_size": 512,
    "ws_per_message_deflate": False,
    # A client that is silent for a minute is gone.
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 40.0,
}
