"""Where vendors share paths: whose a bare path is, and the layer that sends it on to that vendor's own prefix."""

import re
from typing import Literal
from urllib.parse import quote

from litestar.datastructures import Headers
from litestar.types import ASGIApp, Receive, Scope, Send

from app.auth import Bearers, Header, NotAuthenticated, presented
from app.issuer_keys import KeysUnavailable
from eventstore.log import LogUnavailable
from eventstore.tokens import Dialect

Vendor = Literal["shannon", "nanonets"]
ASKED = "asked_path"
SESSION = re.compile(r"((?:/shannon)?/api/v1/sessions/)([^/]+)((?:/history|/events)?/?)")


def claimed(method: str, path: str) -> Vendor | Literal["both"] | None:
    """Whose route this is; None: no vendor's here. A route that only one of them has is that one's, whoever asks."""
    match [part for part in path.split("/") if part]:
        case ["v1", "tasks" | "agents", *_]:
            return "nanonets"
        case ["health" | "readiness" | "openapi.json"]:
            return "shannon"
        case ["api", "v1", "tasks", _, "summary" | "result" | "messages" | "message"]:
            return "nanonets"
        case ["api", "v1", "agents", _, "run"]:
            return "nanonets"
        case ["api", "v1", "tasks" | "agents"] | ["api", "v1", "tasks" | "agents", _]:
            return "shannon" if method == "POST" else "both"  # submit, stream, execute: Nanonets has none of them
        case ["api", "v1", "tasks", _, "cancel"]:
            return "both"
        case ["api", "v1", *_]:
            return "shannon"
        case _:
            return None


def meant(header: Header | None, named: Dialect | None) -> Vendor:
    """Whose words a request with this credential wants; `named` is the dialect that its token was issued for.

    Without a credential Shannon's: only its clients have a mode that sends none.
    """
    if named == "shannon" or named == "nanonets":
        return named
    return "nanonets" if header == "bearer" else "shannon"


def asked_path(scope: Scope) -> str:
    """The path that the client asked for: what a log shows, and what leads elsewhere begins with."""
    return str(scope["state"].get(ASKED, scope["path"]))


def as_named(scope: Scope) -> str:
    """The path that was asked for, below our root. In it a session's name is as it was written, percent-encoded: it
    may hold a slash, by which a decoded path would be another one."""
    path = str(scope["path"]).removeprefix(scope["root_path"])
    raw = scope["raw_path"].decode("ascii").removeprefix(scope["root_path"])
    if SESSION.fullmatch(raw):
        return raw
    found = SESSION.fullmatch(path)
    return path if found is None else f"{found[1]}{quote(found[2], safe='')}{found[3]}"


class Crossroads:
    """Sends bare paths of vendors to `/shannon...` or `/nanonets...`; all others pass."""

    def __init__(self, app: ASGIApp, bearers: Bearers) -> None:
        self._app = app
        self._bearers = bearers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, under the vendor's prefix where the path is one's."""
        if scope["type"] in ("http", "websocket"):
            root = scope["root_path"]
            path = as_named(scope)
            vendor = claimed(scope["method"] if scope["type"] == "http" else "GET", path)
            if vendor == "both":
                vendor = await self._meant(scope)
            found = f"{root}{path}" if vendor is None else f"{root}/{vendor}{path}"
            if found != scope["path"]:
                scope["state"][ASKED] = scope["path"]
                scope = scope.copy()
                # `raw_path` stays: it is what was asked for, and nothing is found by it.
                scope["path"] = found
        await self._app(scope, receive, send)

    async def _meant(self, scope: Scope) -> Vendor:
        header, secret = presented(Headers.from_scope(scope))
        try:
            named = (await self._bearers.authenticate_once(scope["state"], secret)).dialect
        except (NotAuthenticated, KeysUnavailable, LogUnavailable):
            named = None  # which is said where the request is authenticated, in the words that its header asks for
        return meant(header, named)
