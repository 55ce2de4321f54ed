"""The access log and the counts of answers: around the application, and of what is answered in front of it."""

import logging
import time

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.dialects.asked import request_id_of
from app.metrics import Metrics

log = structlog.stdlib.get_logger()

QUIET = ("/health", "/metrics")


class Observed:
    """Our own access log and counts around the application; a query string is never written."""

    def __init__(self, app: ASGIApp, figures: Metrics) -> None:
        self._app = app
        self._metrics = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note status and time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0
        request_id = request_id_of(dict(scope["headers"]).get(b"x-request-id", b""))
        scope["state"]["request_id"] = request_id

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])  # some say it with an enum, which a log would spell out
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            note(self._metrics, scope["method"], scope["path"], status, began, request_id)


def note(figures: Metrics, method: str, path: str, status: int, began: float, request_id: str) -> None:
    """Count an answer to a request that came at this time of the monotonic clock, and write its line."""
    figures.answered(status)
    level = logging.DEBUG if method == "GET" and status < 400 else logging.INFO
    if log.is_enabled_for(level) and not path.startswith(QUIET):
        took_ms = round((time.monotonic() - began) * 1000, 1)
        log.log(
            level,
            "http.request",
            method=method,
            path=path,
            status=status,
            took_ms=took_ms,
            request_id=request_id,
        )
