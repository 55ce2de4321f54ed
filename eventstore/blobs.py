"""What is too big for a message, in a JetStream object store (the format that `nats object` reads).

Chunks lie under `$O.<bucket>.C.<nuid>`, what is said of an object under `$O.<bucket>.M.<base64url of its name>`.
"""

import base64
import hashlib
import random
from collections.abc import AsyncGenerator, AsyncIterable
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from eventstore.connection import Connection, RefusedByServer
from eventstore.log import BlobDamaged, LogUnavailable, TooLarge
from eventstore.stream import Stream

BUCKET = "blobs"
CHUNK = 128 * 1024
MAX_BLOB = 64 * 1024 * 1024


class Meta(Struct):
    """What is said of an object; `metadata` names the append that it belongs to."""

    name: str
    bucket: str
    nuid: str
    size: int
    chunks: int
    digest: str
    mtime: str = ""
    deleted: bool = False
    metadata: dict[str, str] = {}


class JetStreamBlobs:
    """Blobs by name. Build with `open`."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    @classmethod
    async def open(cls, connection: Connection, *, replicas: int = 1) -> "JetStreamBlobs":
        """Create the bucket where it is missing. Raises LogUnavailable, RefusedByServer."""
        stream = Stream(connection, f"OBJ_{BUCKET}")
        await stream.open()
        await stream.ensure(
            {
                "subjects": [f"$O.{BUCKET}.C.>", f"$O.{BUCKET}.M.>"],
                "storage": "file",
                "discard": "new",
                "allow_rollup_hdrs": True,
                "allow_direct": True,
                "num_replicas": replicas,
            }
        )
        return cls(stream)

    async def close(self) -> None:
        """Let go of the connection's inbox."""
        await self.stream.close()

    async def put(self, name: str, content: bytes, *, subject: str = "", expected: int = 0) -> None:
        """Store all of it, then say so: a reader finds it whole or not at all. Raises LogUnavailable, TooLarge."""
        if len(content) > MAX_BLOB:
            raise TooLarge(f"a blob has at most {MAX_BLOB} bytes, this one {len(content)}")
        digest = _digest(content)
        there = await self._meta(name)
        if there is not None and there.digest.rstrip("=") == digest.rstrip("="):
            return
        await self.put_pieces(name, _cut(content), subject=subject, expected=expected)

    async def put_pieces(
        self, name: str, pieces: AsyncIterable[bytes], *, subject: str = "", expected: int = 0
    ) -> None:
        """As `put`, piece by piece, each small enough for a message; of a new name. Raises LogUnavailable, TooLarge."""
        nuid = f"{random.getrandbits(128):032x}"
        size = chunks = 0
        digest = hashlib.sha256()
        try:
            async for piece in pieces:
                size, chunks = size + len(piece), chunks + 1
                if size > MAX_BLOB:
                    raise TooLarge(f"a blob has at most {MAX_BLOB} bytes")
                digest.update(piece)
                await self.stream.publish(f"$O.{BUCKET}.C.{nuid}", piece)
            meta = Meta(
                name=name,
                bucket=BUCKET,
                nuid=nuid,
                size=size,
                chunks=chunks,
                digest=_written(digest.digest()),
                mtime=datetime.now(UTC).isoformat(),
                metadata={"subject": subject, "expected": str(expected)},
            )
            await self.stream.publish(_meta_subject(name), msgspec.json.encode(meta), headers={"Nats-Rollup": "sub"})
        except RefusedByServer as error:
            raise LogUnavailable(f"blob {name}: {error}") from error

    async def get(self, name: str) -> bytes | None:
        """The bytes, checked against their digest; None: there are none by this name. Raises LogUnavailable."""
        meta = await self._meta(name)
        if meta is None:
            return None
        content = b"".join(piece.stored for piece in await self.stream.batch(f"$O.{BUCKET}.C.{meta.nuid}"))
        if _digest(content).rstrip("=") != meta.digest.rstrip("="):
            raise BlobDamaged(f"blob {name}: {len(content)} bytes that are not what was stored (a replica behind?)")
        return content

    async def append_of(self, name: str) -> tuple[str, int] | None:
        """Subject and expected sequence of the append that a blob belongs to; None: there is no such blob, or it is of
        no append. Raises LogUnavailable."""
        meta = await self._meta(name)
        if meta is None or not meta.metadata.get("subject"):
            return None
        return meta.metadata["subject"], int(meta.metadata["expected"])

    async def purge(self, subject: str) -> None:
        """Remove what is on one of the bucket's subjects. Raises LogUnavailable."""
        try:
            await self.stream.connection.api(f"STREAM.PURGE.{self.stream.name}", {"filter": subject})
        except RefusedByServer as error:
            raise LogUnavailable(str(error)) from error

    async def _meta(self, name: str) -> Meta | None:
        found = await self.stream.get(subject=_meta_subject(name))
        if found is None:
            return None
        meta = msgspec.json.decode(found.stored, type=Meta)
        return None if meta.deleted else meta


async def _cut(content: bytes) -> AsyncGenerator[bytes]:
    for at in range(0, len(content), CHUNK):
        yield content[at : at + CHUNK]


def _digest(content: bytes) -> str:
    return _written(hashlib.sha256(content).digest())


def _written(digest: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(digest).decode()


def _meta_subject(name: str) -> str:
    return f"$O.{BUCKET}.M." + base64.urlsafe_b64encode(name.encode()).decode()
