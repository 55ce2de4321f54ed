"""An OAuth access token (a JWT) -> what its issuer says of its bearer, or that it is none of ours."""

import base64
import re
import time
from datetime import UTC, datetime
from typing import TypeVar, get_args

import jwt
import msgspec
from msgspec import Struct

from app.issuer_keys import ALGORITHMS, IssuerKeys
from app.settings import OAuthSettings
from eventstore.events import Owner
from eventstore.log import BadSubject, owner_word
from eventstore.tokens import SCOPES, Dialect, Scope, hashed

LEEWAY_S = 10
"""Clocks differ."""
MAX_BYTES = 16 * 1024
LATEST_S = 253_402_300_799
"""The last second that a datetime can say."""
SHAPE = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
TYPES = ("jwt", "at+jwt", "application/at+jwt")
ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

Part = TypeVar("Part", bound=Struct)


class BadAccessToken(Exception):
    """It is not one of the issuer's for us, or not any more; why is nobody's business."""


class Vouched(Struct, frozen=True, kw_only=True):
    """Whom the issuer vouches for, and for what, until when."""

    owner: Owner
    scopes: frozenset[Scope]
    token_id: str
    expires_at: datetime
    dialect: Dialect | None = None


class _Header(Struct):
    alg: str
    kid: str | None = None
    typ: str = "JWT"


class _Claims(Struct):
    iss: str
    aud: str | list[str]
    exp: float
    nbf: float = 0
    jti: str | None = None
    scope: str | list[str] = ""
    scp: str | list[str] = ""


class Issuer:
    """The one whose access tokens are taken."""

    def __init__(self, settings: OAuthSettings) -> None:
        self._settings = settings
        self._keys = IssuerKeys(settings)

    async def verify(self, token: str) -> Vouched:
        """What the issuer says. Raises BadAccessToken; KeysUnavailable for one that may be good."""
        header = header_of(token)
        if header is None or len(token) > MAX_BYTES or header.typ.lower() not in TYPES:
            raise BadAccessToken
        if header.alg not in ALGORITHMS or not self._may_be_good(token):
            raise BadAccessToken
        key = await self._keys.find(header.kid, header.alg)
        if key is None:
            raise BadAccessToken
        try:
            said: dict[str, object] = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
            return self._bearer(said, token)
        except (jwt.PyJWTError, msgspec.ValidationError, BadSubject, UnicodeError) as error:
            raise BadAccessToken from error

    async def close(self) -> None:
        """Ask no more."""
        await self._keys.close()

    def _may_be_good(self, token: str) -> bool:
        """Nobody is asked for the key of what is no good whoever signed it."""
        claims = _part(token.split(".")[1], _Claims)
        if claims is None or claims.iss != self._settings.issuer:
            return False
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
        now = time.time()
        return self._settings.audience in audience and claims.nbf - LEEWAY_S <= now < claims.exp + LEEWAY_S

    def _bearer(self, said: dict[str, object], token: str) -> Vouched:
        claims = msgspec.convert(said, _Claims)
        named = msgspec.convert(said.get(self._settings.owner_claim), str)
        given = {*words(claims.scope), *words(claims.scp)}
        dialect = said.get(self._settings.dialect_claim)
        return Vouched(
            owner=owner_word(named),
            scopes=frozenset(scope for scope in SCOPES if scope in given),
            token_id=claims.jti if claims.jti and ID.fullmatch(claims.jti) else hashed(token)[:12],
            # To the end of the leeway: else a stream that was just granted would be cut at once, again and again.
            expires_at=datetime.fromtimestamp(min(claims.exp + LEEWAY_S, LATEST_S), UTC),
            dialect=next((one for one in get_args(Dialect) if one == dialect), None),
        )


def header_of(token: str) -> _Header | None:
    """The header of what has the shape of a JWT; None: it has not."""
    shaped = SHAPE.fullmatch(token)
    return None if shaped is None else _part(shaped[1], _Header)


def _part(encoded: str, kind: type[Part]) -> Part | None:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def words(said: str | list[str]) -> list[str]:
    """Scopes, as one issuer or another writes them."""
    return said.split() if isinstance(said, str) else said
