"""The door that has a request's bytes counted as they come in and go out: what there is no room for is refused.

Only what may be large costs anything here. A route that reads much says how much, before it reads: `held_by(...).more`.
"""

import asyncio

from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send, WebSocketReceiveMessage

from app.bounds import Bounds, Held
from app.streams import abort_later
from app.telling import in_time

HELD = "held"
PIECE = 64 * 1024
"""Bytes of an answer that are written at once; the next are when most of these were taken."""
TAKEN_S = 300.0
"""How long a client may take all of its answer."""


class Bounding:
    """Inside, once it is known who asks."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises NoRoom, which is told in the dialect's words."""
        if scope["type"] != "http" or "user" not in scope:
            await self._app(scope, receive, send)
            return
        answer = scope["state"][HELD] = Held(self._bounds.answers, scope["user"])
        body = Held(self._bounds.bodies, scope["user"])

        async def writing(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answer.keep(len(message["body"]))
                if len(message["body"]) > PIECE:
                    await _in_pieces(scope, message["body"], send)
                    return
            await send(message)

        try:
            reading = await _counted(scope, receive, body)
            await self._app(scope, reading, writing)
        finally:
            body.keep(0)
            answer.keep(0)


def held_by(scope: Scope) -> Held:
    """What is held for this request's answer."""
    held = scope["state"][HELD]
    assert isinstance(held, Held), "whoever was let in came through the door"
    return held


async def _counted(scope: Scope, receive: Receive, body: Held) -> Receive:
    """`receive`, with room for what it brings: all of it before the first byte is read, where its length is said. (Many
    halves would fill the room, and none of them come to its end.)"""
    if scope["type"] == "http" and scope["method"] == "GET":
        return receive  # nobody keeps what comes, and a stream would hold room for it as long as it lasts
    said = dict(scope["headers"])
    length = said.get(b"content-length", b"")
    if length:
        # No number: the framework says so.
        await body.more(int(length) if length.isdigit() and len(length) < 16 else 0)
        return receive
    if b"transfer-encoding" not in said:
        return receive

    async def counting() -> HTTPReceiveMessage | WebSocketReceiveMessage:
        message = await receive()
        if message["type"] == "http.request":
            await body.more(len(message["body"]))
        return message

    return counting


async def _in_pieces(scope: Scope, body: bytes, send: Send) -> None:
    """Write so that what is not taken waits here, where it is counted, and not in the server's buffers. Whoever takes
    nothing, or too little, is dropped."""
    try:
        async with asyncio.timeout(TAKEN_S):
            for begin in range(0, len(body), PIECE):
                piece = body[begin : begin + PIECE]
                await in_time(send, {"type": "http.response.body", "body": piece, "more_body": True})
            await in_time(send, {"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        abort_later(scope, 0.0)
