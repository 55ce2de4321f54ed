"""Access tokens (hashed) in a JetStream key-value bucket, followed by a tail of its own."""

import hashlib
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, get_args

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from eventstore.bucket import open_bucket
from eventstore.connection import Connection
from eventstore.events import Owner, Time
from eventstore.log import Arrival, LogUnavailable
from eventstore.stream import Stream
from eventstore.tail import StreamTail

log = structlog.stdlib.get_logger()

BUCKET = "tokens"
PREFIX = f"$KV.{BUCKET}."
HASH = re.compile(r"[0-9a-f]{64}")
MAX_TOKEN = 512

Dialect = Literal["native", "niyra", "shannon", "nanonets"]
Scope = Literal[
    "tasks:read",
    "tasks:write",
    "niyra:execute",
    "niyra:ask",
    "niyra:followup",
    "niyra:tasks:read",
    "audit",
    "audit:all",
    "admin",
    "admin:all",
]
SCOPES: tuple[Scope, ...] = get_args(Scope)
INCLUDED_IN: dict[Scope, Scope] = {
    "niyra:execute": "tasks:write",
    "niyra:ask": "tasks:write",
    "niyra:followup": "tasks:write",
    "niyra:tasks:read": "tasks:read",
    "audit": "audit:all",
}
"""The scope, if any, that allows all that this one does."""
OVER_ALL: frozenset[Scope] = frozenset({"audit:all", "admin:all"})
"""What reaches beyond one owner: no other scope includes these."""


LimitName = Literal[
    "native",
    "niyra.ask",
    "niyra.execute",
    "niyra.poll",
    "shannon.minute",
    "shannon.hour",
    "shannon.day",
    "nanonets",
]
"""What is limited."""
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)


class Plan(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much a token may ask: so many times the deployment's limits, but its own where `limits` has them by name."""

    multiplier: int = 1
    unlimited: bool = False
    limits: dict[str, int] = {}

    @property
    def contradicts_itself(self) -> bool:
        """Whether it says how much, and that there is no limit."""
        return self.unlimited and (bool(self.limits) or self.multiplier != 1)


PLAN = Plan()


class Token(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a token; the token itself is kept nowhere. `id` names it for people (list, revoke)."""

    id: str
    owner: Owner
    scopes: tuple[Scope, ...]
    created_at: Time
    expires_at: Time | None = None
    dialect: Dialect | None = None
    note: str = ""
    plan: Plan = PLAN

    def valid(self, now: datetime) -> bool:
        """Not expired."""
        return self.expires_at is None or now < self.expires_at


def hashed(token: str) -> str:
    """SHA-256 (hex). A token has 256 bits of its own, so no salt and no slow hash are needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    """`tt_` and 256 random bits."""
    return f"tt_{secrets.token_urlsafe(32)}"


class Tokens:
    """All tokens. Build with `open`. A revocation is seen within a second; `on_change` then hears the token's hash."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._known: dict[str, Token] = {}
        self._tail: StreamTail | None = None
        self._on_change: list[Callable[[str], None]] = []

    @classmethod
    async def open(cls, connection: Connection, *, replicas: int = 1) -> "Tokens":
        """Create the bucket where it is missing, and follow it. Raises LogUnavailable, RefusedByServer."""
        stream = await open_bucket(connection, BUCKET, replicas=replicas)
        tokens = cls(connection, stream)
        tokens._tail = await StreamTail.open(connection, stream, tokens._on_arrival, tokens._on_reset, after=0)
        await tokens._tail.catch_up()
        return tokens

    def on_change(self, call: Callable[[str], None]) -> None:
        """Have this called with the hash of each token that is made, changed or revoked."""
        self._on_change.append(call)

    async def find(self, token: str) -> Token | None:
        """The token, if it is known and not expired. One unknown here is looked up at the leader first; so is a known
        one while the tail is unproven. Raises LogUnavailable for an unknown one where no leader answers.
        """
        return None if len(token) > MAX_TOKEN else await self.find_hashed(hashed(token))

    async def find_hashed(self, key: str) -> Token | None:
        """The token with this hash, as `find` finds it."""
        known = self._known.get(key)
        assert self._tail is not None, "build Tokens with open()"
        if known is None or not self._tail.proven:
            try:
                known = await self._look_up(key)
            except LogUnavailable:
                if known is None:
                    raise
        return known if known is not None and known.valid(datetime.now(UTC)) else None

    def at_hand(self, key: str) -> Token | None:
        """The token with this hash, where `find_hashed` would find it without asking anybody; else None."""
        assert self._tail is not None, "build Tokens with open()"
        known = self._known.get(key)
        if known is None or not self._tail.proven:
            return None
        return known if known.expires_at is None or known.valid(datetime.now(UTC)) else None

    async def add(
        self,
        token: str,
        owner: Owner,
        scopes: tuple[Scope, ...],
        *,
        expires_at: datetime | None = None,
        dialect: Dialect | None = None,
        note: str = "",
        plan: Plan = PLAN,
    ) -> Token:
        """Make a token known. The same again (same owner, scopes ...) changes nothing. Raises LogUnavailable."""
        key = hashed(token)
        made = Token(
            id=key[:12],
            owner=owner,
            scopes=scopes,
            created_at=datetime.now(UTC),
            expires_at=expires_at,
            dialect=dialect,
            note=note,
            plan=plan,
        )
        known = await self._look_up(key)
        if known is not None and replace(known, created_at=made.created_at) == made:
            return known
        await self._stream.publish(PREFIX + key, msgspec.json.encode(made))
        return made

    async def revoke(self, token_id: str, *, owner: Owner | None = None) -> Token | None:
        """End a token, of this owner where one is named, by its id (or hash); None: there is none such.

        Raises LogUnavailable."""
        assert self._tail is not None, "build Tokens with open()"
        await self._tail.catch_up()
        for key, token in self._known.items():
            if token_id in (token.id, key) and owner in (None, token.owner):
                await self._stream.publish(PREFIX + key, b"", headers={"KV-Operation": "DEL"})
                return token
        return None

    async def all(self, owner: Owner | None = None) -> list[Token]:
        """Every token, or every one of an owner's, oldest first. Raises LogUnavailable."""
        assert self._tail is not None, "build Tokens with open()"
        await self._tail.catch_up()
        known = [token for token in self._known.values() if owner in (None, token.owner)]
        return sorted(known, key=lambda token: token.created_at)

    async def close(self) -> None:
        """Follow no more."""
        if self._tail is not None:
            await self._tail.close()
        await self._stream.close()

    async def _look_up(self, key: str) -> Token | None:
        found = await self._stream.get(subject=PREFIX + key)
        token = None if found is None else _decode(found)
        if found is not None and token is not None and self._tail is not None and found.sequence > self._tail.position:
            self._known[key] = token  # ahead of the tail, which will then find nothing changed
        return token

    def _on_arrival(self, arrival: Arrival) -> None:
        key = arrival.subject.removeprefix(PREFIX)
        token = _decode(arrival)
        known = self._known.pop(key, None)
        if token is not None and HASH.fullmatch(key):
            self._known[key] = token
        if token is None or token != known:
            self._tell(key)

    def _on_reset(self) -> None:
        known = list(self._known)
        self._known.clear()
        for key in known:
            self._tell(key)

    def _tell(self, key: str) -> None:
        for call in self._on_change:
            call(key)


def _decode(arrival: Arrival) -> Token | None:
    if arrival.deleted or not arrival.stored:
        return None
    try:
        return msgspec.json.decode(arrival.stored, type=Token)
    except msgspec.DecodeError as error:
        log.warning("token.unreadable", key=arrival.subject.removeprefix(PREFIX)[:12], error=str(error))
        return None
