"""The hot poll: a plain GET of a task in memory, by a token that is known, is answered without waking the framework.

Whatever is not exactly that is handed over as it came: `docs/decisions/hot-poll.md` says what, and why.
"""

import hashlib
import re
import time
from collections.abc import Iterable

from litestar.datastructures import Headers
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from msgspec import Struct

from app.attached import Attached, Ready
from app.auth import Principal, presented
from app.bounding import PIECE
from app.dialects.asked import request_id_of
from app.dialects.crossroads import Vendor, claimed, meant
from app.dialects.native import task_id_of
from app.dialects.polling import Poll, ready
from app.dialects.shannon_tracing import traced
from app.limiting import told
from app.observed import note
from app.rooms import Rooms
from app.unwound import went_through
from eventstore.log import LogError
from eventstore.tokens import Dialect, Token

NOT_OURS = frozenset({b"prefer", b"cache-control", b"origin", b"content-length", b"transfer-encoding", b"expect"})
"""A request that has one of these wants more than the bytes, or may."""
HOST = re.compile(rb"[0-9A-Za-z.:\[\]-]*")
"""Others the framework judges."""
ONE_VERSION = re.compile(rb'"([0-9]{1,9})"')
BARE = ("/api/v1/tasks", "/v1/tasks")
"""Where vendors share paths."""
MAX_BEARERS = 10_000


class _Bearer(Struct, frozen=True):
    """Who comes with these credentials, as long as their token is this very one; `vendor`: whose words they want where
    vendors share paths. `polls`: the dialects in which they may."""

    token: Token
    principal: Principal
    vendor: Vendor
    polls: frozenset[Dialect]


class _Wish(Struct, frozen=True):
    """A plain poll, of a task in memory, by somebody who may. `known`: the version that they have."""

    bearer: _Bearer
    poll: Poll
    attached: Attached
    known: int | None


class Front:
    """In front of all other layers."""

    def __init__(self, app: ASGIApp, rooms: Rooms, polls: Iterable[Poll]) -> None:
        self._app = app
        self._rooms = rooms
        self._root_path = rooms.http.root_path
        self._bearers: dict[bytes, _Bearer] = {}
        by_dialect: dict[Dialect, Poll] = {poll.dialect: poll for poll in polls}
        self._polls = {self._root_path + path: poll for poll in by_dialect.values() for path in poll.paths}
        self._bare = tuple(self._root_path + path for path in BARE)
        self._shared: dict[str, dict[Dialect, Poll]] = {}
        for path in BARE:
            whose = claimed("GET", f"{path}/task")
            if whose == "both":
                self._shared[self._root_path + path] = by_dialect
            elif whose is not None:
                self._polls[self._root_path + path] = by_dialect[whose]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]:
            began = time.monotonic()
            wish = self._wish(scope)
            if wish is not None and await self._is_fresh(wish):
                answer = ready(wish.attached, wish.poll)
                if answer is not None and await self._answered(scope, send, wish, answer, began):
                    return
        await went_through(self._app, scope, receive, send)

    def _wish(self, scope: HTTPScope) -> _Wish | None:
        """What is asked for, if all of it is known here; the order of these looks is the order of what they cost."""
        path, _, text = scope["path"].rpartition("/")
        if (path not in self._polls and path not in self._shared) or scope["root_path"] != self._root_path:
            return None
        sent = list(scope["headers"])
        headers = dict(sent)
        if len(headers) != len(sent) or not NOT_OURS.isdisjoint(headers):
            return None
        bearer = self._bearer(scope, headers) if HOST.fullmatch(headers.get(b"host", b"")) else None
        if bearer is None:
            return None
        poll = self._polls.get(path) or self._shared[path][bearer.vendor]
        task_id = task_id_of(text)
        if task_id is None or poll.dialect not in bearer.polls:
            return None
        attached = self._rooms.tasks.at_hand(bearer.principal.owner, task_id)
        if attached is None:
            return None
        given = headers.get(b"if-none-match")
        if given is None:
            return _Wish(bearer, poll, attached, None)
        known = ONE_VERSION.fullmatch(given)
        return None if known is None else _Wish(bearer, poll, attached, int(known[1]))

    def _bearer(self, scope: HTTPScope, headers: dict[bytes, bytes]) -> _Bearer | None:
        """Who asks, if that is known here; looked at anew each time: a token may have been revoked or have expired."""
        # No token is kept, so none is the key.
        given = b"%b\n%b" % (headers.get(b"x-api-key", b""), headers.get(b"authorization", b""))
        key = hashlib.sha256(given).digest()
        bearer = self._bearers.get(key)
        if bearer is not None:
            if self._rooms.tokens.at_hand(bearer.principal.token_hash) is bearer.token:
                return bearer
            del self._bearers[key]
        header, secret = presented(Headers.from_scope(scope))
        found = self._rooms.bearers.at_hand(secret) if secret else None
        if found is None:
            return None
        token, principal = found
        if len(self._bearers) >= MAX_BEARERS:
            self._bearers.clear()
        polls: frozenset[Dialect] = frozenset(
            poll.dialect for poll in self._polls.values() if principal.may(poll.scope)
        )
        bearer = self._bearers[key] = _Bearer(token, principal, meant(header, principal.dialect), polls)
        return bearer

    def _as_routed(self, path: str) -> str:
        """As the framework leaves it for the log: without our root, but for the paths that vendors share."""
        return path if path.startswith(self._bare) else path.removeprefix(self._root_path)

    async def _is_fresh(self, wish: _Wish) -> bool:
        """Have it as fresh as a poll has to be; the question for it is shared with all who ask now."""
        tasks, attached = self._rooms.tasks, wish.attached
        if not tasks.is_fresh(attached):
            if not tasks.tail.proven:
                return False  # it may have to be told how old it is
            try:
                found, age_s = await tasks.get(attached.owner, attached.task_id)
            except LogError:
                return False  # which the framework tells in the caller's words
            if found is not attached or age_s is not None:
                return False
        return wish.known is None or wish.known <= attached.task.version

    async def _answered(self, scope: HTTPScope, send: Send, wish: _Wish, answer: Ready, began: float) -> bool:
        """Count it and write it, as all the layers do it together. False: nothing was done."""
        if len(answer.body) > PIECE:
            return False
        extra: list[tuple[bytes, bytes]] = []
        if wish.poll.budget is not None:
            standings = self._rooms.limits.draw_at_once(wish.bearer.principal, wish.poll.budget)
            if standings is None:
                return False
            extra = told(self._rooms.limits, wish.poll.budget, standings)
        given = dict(scope["headers"])
        if wish.poll.dialect == "shannon":
            extra += traced(scope["headers"])
        request_id = request_id_of(given.get(b"x-request-id", b""))
        extra.append((b"x-request-id", request_id.encode()))
        unchanged = wish.known == answer.version
        status = 0
        try:
            status = 304 if unchanged else 200
            headers = [*(answer.unchanged if unchanged else answer.whole), *extra]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            body = b"" if unchanged else answer.body
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            note(self._rooms.metrics, "GET", self._as_routed(scope["path"]), status, began, request_id)
        return True
