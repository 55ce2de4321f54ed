"""A real issuer of access tokens: real keys, a JWKS over real HTTP, rotation, and outages."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from uuid import uuid4

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import AllowedPrivateKeys, ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.settings import OAuthSettings
from eventstore.events import Json

AUDIENCE = "https://tasks.example.org"


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=bits)


def shown(key: AllowedPrivateKeys) -> dict[str, object]:
    """A key's public half, as a JWK."""
    if isinstance(key, rsa.RSAPrivateKey):
        return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)


class Issuer:
    """It signs with `keys` by their names, and shows `jwks`; `answers` are what it says at other paths, or instead."""

    def __init__(self) -> None:
        self.keys: dict[str, AllowedPrivateKeys] = {"ed": ed25519.Ed25519PrivateKey.generate()}
        self.jwks: list[dict[str, object]] = []
        self.answers: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self.show()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> OAuthSettings:
        return OAuthSettings(issuer=self.url, audience=AUDIENCE)

    @property
    def shows(self) -> int:
        """How often its keys were read."""
        return self.asked.count("/keys")

    def show(self) -> None:
        """Show the keys that there are now."""
        self.jwks = [shown(key) | {"kid": kid, "use": "sig"} for kid, key in self.keys.items()]

    def token(
        self,
        kid: str = "ed",
        algorithm: str = "EdDSA",
        typ: str = "at+jwt",
        claims: Mapping[str, Json] | None = None,
        **more: Json,
    ) -> str:
        """A token, of `ann` and for a minute unless the claims say otherwise; a claim that is None is left out."""
        now = int(time.time())
        usual: dict[str, Json] = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 60}
        said = {"jti": uuid4().hex, "scope": "tasks:read tasks:write", **usual, **(claims or {}), **more}
        told = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(told, self.keys[kid], algorithm, headers={"kid": kid, "typ": typ})

    async def open(self) -> None:
        """Answer; after an outage on the same port."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Be away."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split()[1].decode()
        self.asked.append(path)
        writer.write(self.answers.get(path) or self._usual(path))
        writer.close()
        await writer.wait_closed()

    def _usual(self, path: str) -> bytes:
        if path == "/keys":
            return answer({"keys": self.jwks})
        if path == "/.well-known/openid-configuration":
            return answer({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
        return answer({}, b"404 Not Found")


def answer(body: object, status: bytes = b"200 OK") -> bytes:
    """An HTTP answer, whole."""
    content = msgspec.json.encode(body)
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(content)) + content


@asynccontextmanager
async def issuing() -> AsyncGenerator[Issuer]:
    """An issuer that answers."""
    issuer = Issuer()
    await issuer.open()
    try:
        yield issuer
    finally:
        await issuer.close()
