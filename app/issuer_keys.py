"""The keys of the configured token issuer: found by its metadata, kept, and asked for again, but not without bound."""

import asyncio
from collections import deque
from typing import TypeVar
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec
import structlog
from msgspec import Struct

from app.settings import OAuthSettings

log = structlog.stdlib.get_logger()

FRESH_S = 300.0
"""Then they are asked for again: a key that the issuer has withdrawn is believed no longer than this."""
KEPT_S = 3600.0
"""So long they are believed while the issuer is away."""
LOOKS = 5
LOOKS_WITHIN_S = 60.0
"""So often at most the issuer is asked for a key that it had not shown: bad tokens must not become its load."""
AFTER_FAILURE_S = 1.0
WITHIN_S = 3.0
MAX_BYTES = 256 * 1024
MAX_KEYS = 100

RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
BY_KIND: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ALGORITHMS = frozenset(name for names in BY_KIND.values() for name in names)
"""What a signature may be made with: by a private key that the issuer alone has. Nothing else is looked at."""

Read = TypeVar("Read", bound=Struct)


class KeysUnavailable(Exception):
    """The issuer does not give its keys now, so a token that may be good can't be judged."""


class _Metadata(Struct):
    issuer: str
    jwks_uri: str


class _KeySet(Struct):
    keys: list[dict[str, object]]


class _Key(Struct):
    kty: str
    kid: str | None = None
    crv: str | None = None
    alg: str | None = None
    use: str | None = None
    d: object = None


class _Unusable(Exception):
    """The issuer answered, and not with what it should."""


class IssuerKeys:
    """Those of one issuer, in one process. Nothing is asked before the first token comes."""

    def __init__(self, settings: OAuthSettings, *, fresh_s: float = FRESH_S, kept_s: float = KEPT_S) -> None:
        self._settings = settings
        self._url = settings.jwks_url
        self._http = httpx.AsyncClient(timeout=WITHIN_S)
        self._known: dict[tuple[str | None, str], jwt.PyJWK] = {}
        self._failed_at = float("-inf")
        self._asking: asyncio.Task[bool] | None = None
        self._read_at: deque[float] = deque(maxlen=LOOKS)
        self._fresh_s = fresh_s
        self._kept_s = kept_s

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of this name for this algorithm; None: the issuer has none such. Raises KeysUnavailable."""
        began = asyncio.get_running_loop().time()
        if began - self._last > self._kept_s:
            await self._ask()
        elif began - self._last > self._fresh_s:
            self._begin()  # nobody waits for it: what is known still holds
        found = self._of(kid, algorithm)
        if found is None and self._last < began and self._may_look(began):
            await self._ask()
            found = self._of(kid, algorithm)
        return found

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._http.aclose()

    def _of(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if kid is not None:
            return self._known.get((kid, algorithm))
        only = [key for (_, name), key in self._known.items() if name == algorithm]
        return only[0] if len(only) == 1 else None

    def _may_look(self, now: float) -> bool:
        return len(self._read_at) < LOOKS or now - self._read_at[0] > LOOKS_WITHIN_S

    @property
    def _last(self) -> float:
        return self._read_at[-1] if self._read_at else float("-inf")

    async def _ask(self) -> None:
        # Shielded: whoever hangs up does not stop it for those who wait for the same.
        if not await asyncio.shield(self._begin()):
            raise KeysUnavailable("the issuer of this token does not give its keys now")

    def _begin(self) -> asyncio.Task[bool]:
        """The question that is under way, or a new one."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._renewed())
        return self._asking

    async def _renewed(self) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() - self._failed_at < AFTER_FAILURE_S:
            return False
        try:
            async with asyncio.timeout(WITHIN_S):
                self._known = usable(await self._fetched())
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, _Unusable) as error:
            self._failed_at = loop.time()
            self._url = self._settings.jwks_url  # its metadata may name another place by now
            log.warning("oauth.keys_not_read", issuer=self._settings.issuer, reason=str(error) or type(error).__name__)
            return False
        self._read_at.append(loop.time())
        return True

    async def _fetched(self) -> _KeySet:
        if self._url is None:
            self._url = await self._found()
        return await self._read(self._url, _KeySet)

    async def _found(self) -> str:
        """Where the issuer's metadata says that its keys are."""
        issuer = self._settings.issuer
        at = urlsplit(issuer)
        by_rfc_8414 = at._replace(path=f"/.well-known/oauth-authorization-server{at.path.rstrip('/')}").geturl()
        try:
            metadata = await self._read(f"{issuer.rstrip('/')}/.well-known/openid-configuration", _Metadata)
        except _Unusable:
            metadata = await self._read(by_rfc_8414, _Metadata)
        if metadata.issuer != issuer:
            raise _Unusable(f"its metadata is of another issuer: {metadata.issuer[:200]!r}")
        if at.scheme == "https" and urlsplit(metadata.jwks_uri).scheme != "https":
            raise _Unusable("its metadata names keys that anybody on the way could change")
        return metadata.jwks_uri

    async def _read(self, url: str, kind: type[Read]) -> Read:
        content = b""
        async with self._http.stream("GET", url, headers={"Accept": "application/json"}) as answer:
            if answer.status_code != 200:
                raise _Unusable(f"{url} answered {answer.status_code}")
            async for piece in answer.aiter_bytes():
                content += piece
                if len(content) > MAX_BYTES:
                    raise _Unusable(f"{url} answered more than {MAX_BYTES} bytes")
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise _Unusable(f"{url} answered something else: {error}") from error


def usable(found: _KeySet) -> dict[tuple[str | None, str], jwt.PyJWK]:
    """The keys that verify signatures, by name and algorithm. Raises _Unusable where there is none: an issuer without
    keys is one that is being repaired."""
    known: dict[tuple[str | None, str], jwt.PyJWK] = {}
    for one in found.keys[:MAX_KEYS]:
        try:
            key = msgspec.convert(one, _Key)
            # One whose private half is public proves nothing.
            if key.use not in (None, "sig") or key.d is not None:
                continue
            for name in BY_KIND.get((key.kty, None if key.kty == "RSA" else key.crv), ()):
                if key.alg in (None, name):
                    known[key.kid, name] = jwt.PyJWK(one, name)
        except (msgspec.ValidationError, jwt.PyJWTError, ValueError):
            continue  # of a kind that we do not know
    if not known:
        raise _Unusable("it shows no key that could be used")
    return known
