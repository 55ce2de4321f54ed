"""The plain creation: a new task, asked for in one piece by a token that is known, begins without waking the framework.

Whatever is not exactly that is handed over as it came, and so is what would be refused; `front.py` does the same for
polls. `docs/decisions/plain-creation.md` says what, and why.
"""

import time
from hashlib import sha256

import msgspec
import structlog
from litestar.types import ASGIApp, HTTPReceiveMessage, HTTPScope, Receive, Scope, Send, WebSocketReceiveMessage
from msgspec import Struct

from app.auth import Principal, as_kept
from app.begun import Done
from app.bounding import PIECE
from app.bounds import Held, NoRoom
from app.commands import CreateTask
from app.decide import Rejected
from app.dialects.asked import caused, request_id_of
from app.dialects.native import NewTask, render
from app.dialects.native_routes import marked, wish_of
from app.front import HOST, MAX_BEARERS, NOT_OURS
from app.limiting import told
from app.limits import Standing
from app.observed import note
from app.problems import MEDIA_TYPE, BadRequest, Refused, encode, problem_of
from app.rooms import Rooms
from eventstore.tokens import Token

log = structlog.stdlib.get_logger()

PATH = "/tasks"
LARGEST = PIECE // 4
"""Bytes of such a request: its answer, which tells all of it again, is then written at once."""
Received = HTTPReceiveMessage | WebSocketReceiveMessage
MORE = (NOT_OURS - {b"content-length", b"cache-control"}) | {b"idempotency-key", b"content-encoding"}
"""A request that has one of these wants more, or may."""


class _Asked(Struct, frozen=True):
    """Who asks, how large it is, and the headers that count."""

    principal: Principal
    length: int
    headers: dict[bytes, bytes]
    began: float


class Beginning:
    """In front of all other layers but the polls'."""

    def __init__(self, app: ASGIApp, rooms: Rooms) -> None:
        self._app = app
        self._rooms = rooms
        self._root_path = rooms.http.root_path
        self._largest = min(LARGEST, rooms.http.max_body_bytes)
        self._bearers: dict[bytes, tuple[Token, Principal]] = {}
        self._decode = msgspec.json.Decoder(NewTask).decode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        asked = self._asked(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asked is None:
            await self._app(scope, receive, send)
            return
        held = Held(self._rooms.bounds.bodies, asked.principal)
        try:
            if not await _has_room(held, asked.length):
                await self._app(scope, receive, send)
                return
            message = await receive()
            command = self._command(asked, message)
            standings = None if command is None else self._rooms.limits.draw_at_once(asked.principal, "native")
            if command is None or standings is None:
                held.keep(0)
                await self._app(scope, _again(message, receive), send)
                return
            await self._answer(send, asked, command, standings)
        finally:
            held.keep(0)

    def _asked(self, scope: HTTPScope) -> _Asked | None:
        """If all of this is plain; what is looked at is in the order of its cost."""
        if scope["root_path"] != self._root_path or scope["path"] != self._root_path + PATH or scope["query_string"]:
            return None
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if len(headers) != len(list(scope["headers"])) or not MORE.isdisjoint(headers):
            return None
        if headers.get(b"content-type") != b"application/json" or not length.isdigit() or len(length) > 6:
            return None
        if int(length) > self._largest or not HOST.fullmatch(headers.get(b"host", b"")):
            return None
        principal = self._bearer(headers)
        return None if principal is None else _Asked(principal, int(length), headers, time.monotonic())

    def _bearer(self, headers: dict[bytes, bytes]) -> Principal | None:
        """Who may do this, if that is known here; looked at anew each time: a token may have been revoked or have
        expired."""
        given, key = headers.get(b"authorization", b""), headers.get(b"x-api-key")
        secret = key if key is not None else given[7:] if given.startswith(b"Bearer ") else b""
        if not secret or secret != secret.strip() or not secret.isascii():
            return None
        # No token is kept, so none is the key.
        name = sha256(secret).digest()
        known = self._bearers.get(name)
        if known is not None:
            token, principal = known
            if self._rooms.tokens.at_hand(principal.token_hash) is token:
                return principal
            del self._bearers[name]
        found = self._rooms.bearers.at_hand(as_kept(secret.decode()))
        if found is None or not found[1].may("tasks:write"):
            return None
        if len(self._bearers) >= MAX_BEARERS:
            self._bearers.clear()
        self._bearers[name] = found
        return found[1]

    def _command(self, asked: _Asked, message: Received) -> CreateTask | None:
        """What is wished, if all of it is here and there is nothing wrong with it."""
        if message["type"] != "http.request":
            return None
        body = message["body"]
        if message.get("more_body") or len(body) != asked.length:
            return None
        try:
            return wish_of(self._decode(body), self._rooms.catalogue)
        except (msgspec.MsgspecError, ValueError, RecursionError, BadRequest):
            return None  # the framework says what

    async def _answer(self, send: Send, asked: _Asked, command: CreateTask, standings: list[Standing]) -> None:
        """Have it begin, count it and write it, as all the layers do it together."""
        request_id = request_id_of(asked.headers.get(b"x-request-id", b""))
        status = 0
        try:
            traceparent = asked.headers.get(b"traceparent", b"").decode(errors="replace")
            cause = caused(asked.principal, request_id, traceparent)
            try:
                done = await self._rooms.tasks.create(asked.principal.owner, command, cause)
                if isinstance(done, Rejected):
                    raise Refused(done)
            except Exception as error:
                status, words, media_type, body = self._problem(error)
            else:
                status, words, media_type, body = 201, self._words(done), "application/json", render(done.task, {})
            headers = [(name.lower().encode(), value.encode()) for name, value in words.items()]
            headers.append((b"content-type", media_type.encode()))
            headers.append((b"content-length", str(len(body)).encode()))
            headers += told(self._rooms.limits, "native", standings)
            headers.append((b"x-request-id", request_id.encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            note(self._rooms.metrics, "POST", PATH, status, asked.began, request_id)

    def _words(self, done: Done) -> dict[str, str]:
        return marked(done.task, {"Location": f"{self._root_path}{PATH}/{done.task.task_id}"})

    def _problem(self, error: Exception) -> tuple[int, dict[str, str], str, bytes]:
        problem, headers = problem_of(error)
        if problem.code == "internal_error":
            log.error("http.fault", path=PATH, exc_info=error)
        return problem.status, headers, MEDIA_TYPE, encode(problem)


async def _has_room(held: Held, length: int) -> bool:
    try:
        await held.more(length)
    except NoRoom:
        return False  # which the framework finds, too
    return True


def _again(message: Received, receive: Receive) -> Receive:
    """What was received is received first."""
    said: list[Received] = [message]

    async def receiving() -> Received:
        return said.pop() if said else await receive()

    return receiving
