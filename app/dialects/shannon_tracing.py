"""The headers by which Shannon's clients find their requests again: on every answer, errors too."""

import re
import secrets
from collections.abc import Iterable

from litestar.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = "/shannon"
NAME = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")


class Tracing:
    """Around all; what is not under `/shannon` is passed on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and name the trace."""
        if scope["type"] != "http" or not is_shannons(scope["path"].removeprefix(scope["root_path"])):
            await self._app(scope, receive, send)
            return
        names = traced(scope["headers"])

        async def tracing(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *names]
            await send(message)

        await self._app(scope, receive, tracing)


def is_shannons(path: str) -> bool:
    """Whether whoever asks for this path, also where nothing is, expects Shannon's words."""
    return f"{path}/".startswith(f"{PREFIX}/")


def traced(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The request's trace, by whatever name it came with, and this answer's span."""
    given = dict(headers)
    parts = given.get(b"traceparent", b"").split(b"-")
    names = [parts[1] if len(parts) > 1 else b"", given.get(b"x-trace-id", b""), given.get(b"x-request-id", b"")]
    trace_id = next((name for name in names if NAME.fullmatch(name)), secrets.token_hex(16).encode())
    return [(b"x-trace-id", trace_id), (b"x-span-id", secrets.token_hex(7).encode())]
