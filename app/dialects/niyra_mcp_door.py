"""The door of Niyra's MCP endpoint: whoever may not come in is told so; the SDK is fetched when somebody comes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from litestar import asgi
from litestar.exceptions import MethodNotAllowedException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from app.dialects.niyra import OriginNotAllowed
from app.dialects.niyra_calls import Calls
from app.freezing import freeze
from app.limits import Limits
from app.settings import HttpSettings

if TYPE_CHECKING:
    from app.dialects.niyra_mcp import Mcp

PATHS = ["/mcp", "/niyra/mcp"]


class McpDoor:
    """The endpoint, before and after its first request.

    To import the SDK takes longer than all else that an API process starts with, and most never need it.
    """

    def __init__(self, calls: Calls, limits: Limits, http: HttpSettings) -> None:
        self._calls = calls
        self._limits = limits
        self._http = http
        self._opening: asyncio.Task[Mcp] | None = None
        self._open = AsyncExitStack()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """It answers while the context lasts."""
        try:
            yield
        finally:
            if self._opening is not None:
                await asyncio.wait([self._opening])
            await self._open.aclose()

    def routes(self) -> ASGIRouteHandler:
        """`/mcp`, and the same again under the vendor's prefix."""

        @asgi(PATHS, copy_scope=True)
        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST":
                # A stream of the server's own, or a session to delete: there are none.
                raise MethodNotAllowedException(headers={"Allow": "POST"})
            _check_origin(scope, self._http.cors_origins)
            if self._opening is None:
                self._opening = asyncio.create_task(self._opened())
            # All who come first wait for the same; that one of them hangs up is nothing to the others.
            mcp = await asyncio.shield(self._opening)
            await mcp.answer(scope, receive, send)

        return endpoint

    async def _opened(self) -> "Mcp":
        made = await asyncio.to_thread(_fetched)
        freeze()
        mcp = made(self._calls, self._limits, self._http)
        await self._open.enter_async_context(mcp.run())
        return mcp


def _fetched() -> "type[Mcp]":
    from app.dialects.niyra_mcp import Mcp

    return Mcp


def _check_origin(scope: Scope, allowed: tuple[str, ...]) -> None:
    """A page of another site does not use a browser's way to us (the specification asks for it). Raises
    OriginNotAllowed."""
    headers = dict(scope["headers"])
    origin = headers.get(b"origin", b"").decode("latin-1")
    if not origin or "*" in allowed or origin in allowed:
        return
    try:
        ours = urlsplit(origin).netloc == headers.get(b"host", b"").decode("latin-1")
    except ValueError:
        ours = False
    if not ours:
        raise OriginNotAllowed("this origin may not call /mcp: --cors-origin does not name it")
