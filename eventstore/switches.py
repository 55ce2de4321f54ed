"""Tools that an owner has switched off, in a JetStream key-value bucket, followed by a tail of its own."""

import base64
from datetime import UTC, datetime

import msgspec
import structlog
from msgspec import Struct

from eventstore.bucket import open_bucket
from eventstore.connection import Connection
from eventstore.events import Owner, Time
from eventstore.log import Arrival, BadSubject
from eventstore.stream import Stream
from eventstore.tail import StreamTail

log = structlog.stdlib.get_logger()

BUCKET = "tools"
PREFIX = f"$KV.{BUCKET}."
MAX_NAME_BYTES = 512


class Disabled(Struct, frozen=True, kw_only=True):
    """One tool of one owner's, and since when it is switched off."""

    owner: Owner
    tool: str
    since: Time


class Switches:
    """All tools that are off; the rest are on. Build with `open`. A change is seen within a second."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._off: dict[str, Disabled] = {}
        self._tail: StreamTail | None = None

    @classmethod
    async def open(cls, connection: Connection, *, replicas: int = 1) -> "Switches":
        """Create the bucket where it is missing, and follow it. Raises LogUnavailable, RefusedByServer."""
        switches = cls(await open_bucket(connection, BUCKET, replicas=replicas))
        switches._tail = await StreamTail.open(
            connection, switches._stream, switches._on_arrival, switches._off.clear, after=0
        )
        await switches._tail.catch_up()
        return switches

    async def disabled(self, owner: Owner, tool: str) -> bool:
        """Whether it is off. Raises LogUnavailable where what we know may be old and no leader answers."""
        if len(tool.encode()) > MAX_NAME_BYTES:
            return False  # nobody can have switched it off
        key = _key(owner, tool)
        if self._follower.proven:
            return key in self._off
        found = await self._stream.get(subject=key)
        return found is not None and _decoded(found) is not None

    async def disable(self, owner: Owner, tool: str) -> Disabled:
        """Switch it off; one that is off stays so. Raises BadSubject, LogUnavailable."""
        key = _key(owner, tool)
        off = Disabled(owner=owner, tool=tool, since=datetime.now(UTC))
        await self._follower.catch_up()
        if known := self._off.get(key):
            return known
        await self._stream.publish(key, msgspec.json.encode(off))
        return off

    async def enable(self, owner: Owner, tool: str) -> bool:
        """Switch it on; False: it was. Raises BadSubject, LogUnavailable."""
        key = _key(owner, tool)
        await self._follower.catch_up()
        if key not in self._off:
            return False
        await self._stream.publish(key, b"", headers={"KV-Operation": "DEL"})
        return True

    async def all(self, owner: Owner) -> list[Disabled]:
        """This owner's, by name. Raises LogUnavailable."""
        await self._follower.catch_up()
        return sorted((one for one in self._off.values() if one.owner == owner), key=lambda one: one.tool)

    async def close(self) -> None:
        """Follow no more."""
        if self._tail is not None:
            await self._tail.close()
        await self._stream.close()

    @property
    def _follower(self) -> StreamTail:
        assert self._tail is not None, "build Switches with open()"
        return self._tail

    def _on_arrival(self, arrival: Arrival) -> None:
        off = _decoded(arrival)
        if off is None:
            self._off.pop(arrival.subject, None)
        else:
            self._off[arrival.subject] = off


def _key(owner: Owner, tool: str) -> str:
    """Names of tools hold anything; subjects do not."""
    name = tool.encode()
    if not 0 < len(name) <= MAX_NAME_BYTES:
        raise BadSubject(f"a tool's name has 1 to {MAX_NAME_BYTES} bytes, this one {len(name)}")
    return f"{PREFIX}{owner}.{base64.b32encode(name).decode().rstrip('=').lower()}"


def _decoded(arrival: Arrival) -> Disabled | None:
    if arrival.deleted or not arrival.stored:
        return None
    try:
        return msgspec.json.decode(arrival.stored, type=Disabled)
    except msgspec.DecodeError as error:
        log.warning("switches.unreadable", key=arrival.subject, error=str(error))
        return None
