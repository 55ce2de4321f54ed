"""What of an answer goes on when the framework is through with it: a stream that only waits, which would else keep all
of the framework's frames and objects in memory for as long as it lasts (docs/decisions/task-streams.md)."""

from litestar.types import ASGIApp, Receive, Scope, Send

from app.feed import REST, TaskStream
from app.lines import lent

BARE = frozenset(
    ("type", "asgi", "http_version", "server", "client", "scheme", "method", "root_path", "path", "raw_path")
) | {"query_string", "headers", "extensions", "state"}
"""What a server says of a request: all that it will ask for."""


async def went_through(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass on; then wait for the rest of a stream, if there is one."""
    stream: object = None
    through = False
    try:
        await app(scope, receive, send)
        through = True
    finally:
        stream = scope["state"].pop(REST, None) if "state" in scope else None
        if isinstance(stream, TaskStream) and not through:
            stream.leave()
    if isinstance(stream, TaskStream):
        scope["state"].clear()
        for name in [name for name in scope if name not in BARE]:
            del scope[name]
        if (line := lent(scope)) is not None:
            line.settle()
        await stream.rest(scope, send)
