"""Token -> `Principal`: who is asking, and what they may do."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from litestar.datastructures import Headers
from msgspec import Struct

from app.issuer_keys import KeysUnavailable
from app.oauth import BadAccessToken, Issuer, Vouched, header_of
from eventstore.events import Owner
from eventstore.log import LogUnavailable
from eventstore.tokens import INCLUDED_IN, MAX_TOKEN, OVER_ALL, PLAN, Dialect, Plan, Scope, Token, Tokens, hashed

Header = Literal["key", "bearer"]
"""Where a token came: `X-API-Key`, or `Authorization: Bearer`."""


JUDGED = "judged"


class NotAuthenticated(Exception):
    """No token, or one that is unknown, expired or revoked: nobody is told which."""


class NotAllowed(Exception):
    """The token lacks a scope."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"this needs a token with scope {scope}")
        self.scope = scope


class Principal(Struct, frozen=True, kw_only=True):
    """Who is asking. `token_hash` names the token without being it. `vouched_for`: by an issuer; we keep
    nothing of such a token."""

    owner: Owner
    scopes: frozenset[Scope]
    token_id: str
    token_hash: str
    dialect: Dialect | None = None
    expires_at: datetime | None = None
    vouched_for: bool = False
    plan: Plan = PLAN

    def need(self, scope: Scope) -> None:
        """Raises NotAllowed."""
        if not self.may(scope):
            raise NotAllowed(scope)

    def may(self, scope: Scope) -> bool:
        """Whether their scopes allow what this one does. `admin` may do everything to its own, and only that."""
        allowing: set[Scope] = {scope, INCLUDED_IN.get(scope, scope)}
        if scope not in OVER_ALL:
            allowing |= {"admin", "admin:all"}
        return not self.scopes.isdisjoint(allowing)

    @property
    def hears_all(self) -> bool:
        """Whether the whole log is theirs to read. Not by `admin`: that is about one's own."""
        return self.may("audit:all")

    @property
    def rules_all(self) -> bool:
        """Whether everybody's tokens and tools are theirs to rule."""
        return self.may("admin:all")

    @property
    def purse(self) -> str:
        """Whose budgets they draw on: the token's; where an issuer vouches, the owner's, however often it gives out new
        tokens."""
        return hashed(f"vouched for: {self.owner}") if self.vouched_for else self.token_hash

    @property
    def actor(self) -> str:
        """How the log names them."""
        return f"{self.owner}/{self.token_id}"


def presented(headers: Headers) -> tuple[Header | None, str | None]:
    """The token that came in a request's headers, and in which: `X-API-Key` beats `Authorization: Bearer`."""
    if key := headers.get("x-api-key"):
        return "key", as_kept(key)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return "bearer", as_kept(token.strip())
    return None, None


def credentials(headers: Headers, token_in_query: str | None = None) -> str | None:
    """The token that came with a request: in a header, or (streams only) the query's `token`."""
    _, token = presented(headers)
    return token or (as_kept(token_in_query) if token_in_query else None)


def as_kept(secret: str) -> str:
    """The secret by the name under which it was made: Shannon's clients may write `sk-shannon-x` for `sk_x`."""
    name = secret.removeprefix("sk-shannon-")
    return secret if name == secret else f"sk_{name.removeprefix('sk_')}"


@lru_cache(maxsize=1024)
def _shared(scopes: tuple[Scope, ...]) -> frozenset[Scope]:
    """One set for all who may do the same: each open stream has its principal."""
    return frozenset(scopes)


def principal_of(token: Token, secret: str) -> Principal:
    """Who the bearer of this token is."""
    return Principal(
        owner=token.owner,
        scopes=_shared(token.scopes),
        token_id=token.id,
        token_hash=hashed(secret),
        dialect=token.dialect,
        expires_at=token.expires_at,
        plan=token.plan,
    )


def vouched_for(vouched: Vouched, secret: str) -> Principal:
    """Who the bearer of an issuer's token is."""
    return Principal(
        owner=vouched.owner,
        scopes=vouched.scopes,
        token_id=vouched.token_id,
        token_hash=hashed(secret),
        dialect=vouched.dialect,
        expires_at=vouched.expires_at,
        vouched_for=True,
    )


class _Judged(Struct, frozen=True):
    secret: str | None
    outcome: Principal | Exception


class Bearers:
    """The one place where a secret becomes a Principal: by our own tokens, or by the word of an issuer."""

    def __init__(self, tokens: Tokens, issuer: Issuer | None) -> None:
        self._tokens = tokens
        self._issuer = issuer

    async def authenticate(self, secret: str | None) -> Principal:
        """Raises NotAuthenticated; LogUnavailable where an unknown token can't be looked up, KeysUnavailable where an
        issuer's can't be judged."""
        if not secret:
            raise NotAuthenticated
        if self._issuer is not None and header_of(secret) is not None:
            try:
                return vouched_for(await self._issuer.verify(secret), secret)
            except BadAccessToken as error:
                raise NotAuthenticated from error
        token = await self._tokens.find(secret)
        if token is None:
            raise NotAuthenticated
        return principal_of(token, secret)

    def at_hand(self, secret: str) -> tuple[Token, Principal] | None:
        """The token of ours that this is, and its bearer, where that is known without asking anybody; else None."""
        if len(secret) > MAX_TOKEN or (self._issuer is not None and header_of(secret) is not None):
            return None
        token = self._tokens.at_hand(hashed(secret))
        return None if token is None else (token, principal_of(token, secret))

    async def authenticate_once(self, state: dict[str, object], secret: str | None) -> Principal:
        """The same, found out once in the course of a request, whose state this is: to verify a signature is dear."""
        judged = state.get(JUDGED)
        if not isinstance(judged, _Judged) or judged.secret != secret:
            judged = state[JUDGED] = _Judged(secret, await self._outcome(secret))
        if isinstance(judged.outcome, Exception):
            raise judged.outcome
        return judged.outcome

    async def _outcome(self, secret: str | None) -> Principal | Exception:
        try:
            return await self.authenticate(secret)
        except (NotAuthenticated, KeysUnavailable, LogUnavailable) as error:
            return error

    async def close(self) -> None:
        """Ask the issuer no more."""
        if self._issuer is not None:
            await self._issuer.close()


CutOff = Callable[[str], None]


class _Watched:
    """The open streams of one token, and the timer of its expiry: one for all of them."""

    def __init__(self) -> None:
        self.cut_offs: set[CutOff] = set()
        self.timer: asyncio.TimerHandle | None = None

    def forget(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Revocations:
    """Breaks open streams whose token was revoked or has expired."""

    def __init__(self, tokens: Tokens) -> None:
        self._watched: dict[str, _Watched] = {}
        self._tokens = tokens
        tokens.on_change(self._changed)

    def watch(self, principal: Principal, cut_off: CutOff) -> None:
        """Have this called, with the reason, when the principal's token ends. Give it back with `unwatch`."""
        watched = self._watched.get(principal.token_hash)
        if watched is None:
            watched = self._watched[principal.token_hash] = _Watched()
            if principal.expires_at is not None:
                left_s = max(0.0, (principal.expires_at - datetime.now(UTC)).total_seconds())
                loop = asyncio.get_running_loop()
                watched.timer = loop.call_later(left_s, self._end, principal.token_hash, "token_expired")
        watched.cut_offs.add(cut_off)

    async def check(self, principal: Principal) -> None:
        """Raises NotAuthenticated where the token ended between its being judged and its being watched."""
        if principal.vouched_for:
            ended = principal.expires_at is not None and principal.expires_at <= datetime.now(UTC)
        else:
            ended = await self._tokens.find_hashed(principal.token_hash) is None
        if ended:
            raise NotAuthenticated

    async def for_good(self, principal: Principal, why: str) -> bool:
        """Whether it is sure, after such a cut, that this token opens nothing any more."""
        if why != "token_changed":
            return why == "token_expired"
        try:
            await self.check(principal)
        except NotAuthenticated:
            return True
        except LogUnavailable:
            return False
        return False

    def unwatch(self, principal: Principal, cut_off: CutOff) -> None:
        """No longer of interest."""
        watched = self._watched.get(principal.token_hash)
        if watched is None:
            return
        watched.cut_offs.discard(cut_off)
        if not watched.cut_offs:
            watched.forget()
            del self._watched[principal.token_hash]

    def _changed(self, token_hash: str) -> None:
        # A changed token may have lost its scope, or live on for longer; its streams begin anew and are judged anew.
        self._end(token_hash, "token_changed")

    def _end(self, token_hash: str, why: str) -> None:
        # Forgotten at once: a stream that begins before those are gone is of the token as it is now, whose end is
        # another.
        watched = self._watched.pop(token_hash, None)
        if watched is not None:
            watched.forget()
            for cut_off in list(watched.cut_offs):
                cut_off(why)
