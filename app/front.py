"""The hot poll: a plain GET of a task in memory, by a token that is known, is answered without waking the framework.

Whatever is not exactly that is handed over as it came: `docs/decisions/hot-poll.md` says what, and why.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from litestar.datastructures import Headers
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Struct

from app.attached import Attached, Head
from app.auth import Principal, presented
from app.bounding import PIECE
from app.dialects.asked import request_id_of
from app.dialects.crossroads import Vendor, claimed, meant
from app.dialects.native import task_id_of
from app.dialects.polling import Poll, ready
from app.dialects.shannon_tracing import traced
from app.limiting import told
from app.limits import Budget
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
VENDORS: tuple[Vendor, Vendor] = ("shannon", "nanonets")
MAX_BEARERS = 10_000


class _Bearer(Struct, frozen=True):
    """Who comes with these credentials, as long as their token is this very one; `vendor`: whose words they want where
    vendors share paths. `polls`: the dialects in which they may. `counted`: the budgets of which anything is told."""

    token: Token
    principal: Principal
    vendor: Vendor
    polls: frozenset[Dialect]
    counted: frozenset[Budget]


class _Wish(Struct, frozen=True):
    """A plain poll, of a task in memory, by somebody who may. `known`: the version that they have."""

    path: str
    headers: dict[bytes, bytes]
    bearer: _Bearer
    poll: Poll
    attached: Attached
    known: int | None


class Answer(Struct, frozen=True):
    """What a poll is answered. `more`: the headers that are this answer's alone."""

    status: int
    head: Head
    more: list[tuple[bytes, bytes]]
    body: bytes
    request_id: str


class Front:
    """In front of all other layers."""

    def __init__(self, app: ASGIApp, rooms: Rooms, polls: Iterable[Poll]) -> None:
        self._app = app
        self._rooms = rooms
        self._root_path = rooms.http.root_path
        self._bearers: dict[bytes, _Bearer] = {}
        self._each = tuple(polls)
        by_dialect = {poll.dialect: poll for poll in self._each}
        self._bare = tuple(self._root_path + path for path in BARE)
        self._polls: dict[str, Mapping[Vendor, Poll]] = {}
        for poll in by_dialect.values():
            for path in poll.paths:
                self._polls[self._root_path + path] = dict.fromkeys(VENDORS, poll)
        for path in BARE:
            whose = claimed("GET", f"{path}/task")
            if whose is not None:
                vendors = VENDORS if whose == "both" else (whose, whose)
                named = zip(VENDORS, vendors, strict=True)
                self._polls[self._root_path + path] = {vendor: by_dialect[theirs] for vendor, theirs in named}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]:
            began = time.monotonic()
            wish = self._wish(scope["root_path"], scope["path"], scope["headers"])
            if wish is not None and (self._rooms.tasks.is_fresh(wish.attached) or await self._is_made_fresh(wish)):
                answer = self._answer(wish)
                if answer is not None:
                    await self._tell(send, wish.path, answer, began)
                    return
        await went_through(self._app, scope, receive, send)

    def at_once(self, root_path: str, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Answer | None:
        """What a GET is to be told, where nobody has to be asked for it, counted and logged as told; None: it is to be
        passed on, and nothing was done."""
        if self._rooms.http.reads == "strict":
            return None  # nearly always the leader is asked; to judge twice would cost each of these polls
        began = time.monotonic()
        wish = self._wish(root_path, path, headers)
        if wish is None or not self._rooms.tasks.is_fresh(wish.attached):
            return None
        answer = self._answer(wish)
        if answer is not None:
            self._note(path, answer.status, began, answer.request_id)
        return answer

    def _wish(self, root_path: str, path: str, sent: Iterable[tuple[bytes, bytes]]) -> _Wish | None:
        """What is asked for, if all of it is known here; the order of these looks is the order of what they cost."""
        where, _, text = path.rpartition("/")
        polls = self._polls.get(where)
        if polls is None or root_path != self._root_path:
            return None
        pairs = list(sent)
        headers = dict(pairs)
        if len(headers) != len(pairs) or not NOT_OURS.isdisjoint(headers):
            return None
        bearer = self._bearer(headers) if HOST.fullmatch(headers.get(b"host", b"")) else None
        if bearer is None:
            return None
        poll = polls[bearer.vendor]
        task_id = task_id_of(text)
        if task_id is None or poll.dialect not in bearer.polls:
            return None
        attached = self._rooms.tasks.at_hand(bearer.principal.owner, task_id)
        if attached is None:
            return None
        given = headers.get(b"if-none-match")
        known = None if given is None else ONE_VERSION.fullmatch(given)
        if given is not None and known is None:
            return None
        return _Wish(path, headers, bearer, poll, attached, None if known is None else int(known[1]))

    def _bearer(self, headers: dict[bytes, bytes]) -> _Bearer | None:
        """Who asks, if that is known here; looked at anew each time: a token may have been revoked or have expired."""
        # No token is kept, so none is the key.
        given = b"%b\n%b" % (headers.get(b"x-api-key", b""), headers.get(b"authorization", b""))
        key = hashlib.sha256(given).digest()
        bearer = self._bearers.get(key)
        if bearer is not None:
            if self._rooms.tokens.at_hand(bearer.principal.token_hash) is bearer.token:
                return bearer
            del self._bearers[key]
        header, secret = presented(Headers(list(headers.items())))
        found = self._rooms.bearers.at_hand(secret) if secret else None
        if found is None:
            return None
        token, principal = found
        if len(self._bearers) >= MAX_BEARERS:
            self._bearers.clear()
        vendor = meant(header, principal.dialect)
        polls: frozenset[Dialect] = frozenset(poll.dialect for poll in self._each if principal.may(poll.scope))
        limits, plan = self._rooms.limits, principal.plan
        counted: frozenset[Budget] = frozenset(
            poll.budget for poll in self._each if poll.budget is not None and limits.counts(poll.budget, plan)
        )
        bearer = self._bearers[key] = _Bearer(token, principal, vendor, polls, counted)
        return bearer

    async def _is_made_fresh(self, wish: _Wish) -> bool:
        """Have it as fresh as a poll has to be; the question for it is shared with all who ask now."""
        tasks, attached = self._rooms.tasks, wish.attached
        if not tasks.tail.proven:
            return False  # it may have to be told how old it is
        try:
            found, age_s = await tasks.get(attached.owner, attached.task_id)
        except LogError:
            return False  # which the framework tells in the caller's words
        return found is attached and age_s is None

    def _answer(self, wish: _Wish) -> Answer | None:
        """What is told of a task that is fresh, drawn on the caller's budget; None: nothing was done."""
        answer = ready(wish.attached, wish.poll)
        if answer is None or len(answer.body) > PIECE or (wish.known is not None and wish.known > answer.version):
            return None
        more: list[tuple[bytes, bytes]] = []
        if wish.poll.budget is not None and wish.poll.budget in wish.bearer.counted:
            standings = self._rooms.limits.draw_at_once(wish.bearer.principal, wish.poll.budget)
            if standings is None:
                return None
            more = told(self._rooms.limits, wish.poll.budget, standings)
        if wish.poll.dialect == "shannon":
            more += traced(wish.headers.items())
        request_id = request_id_of(wish.headers.get(b"x-request-id", b""))
        more.append((b"x-request-id", request_id.encode()))
        if wish.known == answer.version:
            return Answer(304, answer.unchanged, more, b"", request_id)
        return Answer(200, answer.whole, more, answer.body, request_id)

    async def _tell(self, send: Send, path: str, answer: Answer, began: float) -> None:
        """Write it and count it, as all the layers do it together."""
        status = 0
        try:
            status = answer.status
            headers = [*answer.head.headers, *answer.more]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body, "more_body": False})
        finally:
            self._note(path, status, began, answer.request_id)

    def _note(self, path: str, status: int, began: float, request_id: str) -> None:
        # As the framework leaves it for the log: without our root, but for the paths that vendors share.
        routed = path if path.startswith(self._bare) else path.removeprefix(self._root_path)
        note(self._rooms.metrics, "GET", routed, status, began, request_id)
