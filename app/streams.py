"""What an open stream is beside its story: its place in the process, its token's life, and how it comes to its end."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine

from litestar.types import Receive, Scope

from app.auth import Principal, Revocations
from app.bounds import TooManyStreams
from app.readers import ENDED, LEFT, Reader
from app.telling import Telling
from app.wheel import Wheel

ABORT = "tasktrail.abort"
"""The ASGI extension by which our server lets a response drop its connection."""
LINGER_S = 2.0


class Streams:
    """The open streams of one process, so that they can be counted, pinged and, at a stop, cut."""

    def __init__(self, *, max_bytes: int, ping_s: float, per_token: int) -> None:
        self.max_bytes = max_bytes
        self.readers: set[Reader] = set()
        self.ping_s = ping_s
        self._wheels: dict[tuple[bytes, float], Wheel] = {}
        self._per_token = per_token
        self._open_of: Counter[str] = Counter()
        self._draining = False

    def take(self, reader: Reader, principal: Principal) -> None:
        """A place for this reader's stream; `release` it. Raises TooManyStreams."""
        if self.open_of(principal) >= self._per_token and not principal.plan.unlimited:
            raise TooManyStreams(f"at most {self._per_token} streams at once by one token; close one, or come later")
        self.readers.add(reader)
        self._open_of[principal.purse] += 1
        if self._draining:
            reader.cut_off("drain")

    def release(self, reader: Reader, principal: Principal) -> None:
        """Not open any more."""
        self.readers.discard(reader)
        self._open_of[principal.purse] -= 1
        if not self._open_of[principal.purse]:
            del self._open_of[principal.purse]

    def wheel(self, telling: Telling) -> Wheel | None:
        """What pings those who are told so; None: they need none."""
        if not telling.ping:
            return None
        how = telling.ping, min(self.ping_s, telling.ping_s)
        if how not in self._wheels:
            self._wheels[how] = Wheel(*how)
        return self._wheels[how]

    def open_of(self, principal: Principal) -> int:
        """How many streams they have open."""
        return self._open_of.get(principal.purse, 0)

    def drain(self) -> None:
        """Cut them all, and whatever comes: their clients resume elsewhere."""
        self._draining = True
        for reader in list(self.readers):
            reader.cut_off("drain")


class Place:
    """What an open stream holds: a place among those that a drain cuts, and an ear for its token's end."""

    def __init__(self, streams: Streams, revocations: Revocations, principal: Principal, reader: Reader) -> None:
        """Raises TooManyStreams."""
        streams.take(reader, principal)
        revocations.watch(principal, reader.cut_off)
        self._streams = streams
        self._revocations = revocations
        self._principal = principal
        self._reader = reader

    def give_back(self) -> None:
        """All of it. Whoever is about to tell its reader something finds it gone."""
        self._revocations.unwatch(self._principal, self._reader.cut_off)
        self._streams.release(self._reader, self._principal)
        self._reader.cut_off(LEFT)


@contextlib.asynccontextmanager
async def held(
    streams: Streams, revocations: Revocations, principal: Principal, reader: Reader
) -> AsyncGenerator[None]:
    """A place as long as the context lasts. Raises TooManyStreams, NotAuthenticated."""
    place = Place(streams, revocations, principal, reader)
    try:
        await revocations.check(principal)
        yield
    finally:
        place.give_back()


async def until_over(
    writing: Coroutine[None, None, str | None], leaving: Coroutine[None, None, None] | None, reader: Reader
) -> str | None:
    """Write until that is over, and says why, or the client leaves, or the reader is over: then why."""
    written = asyncio.ensure_future(writing)
    works = [written] if leaving is None else [written, asyncio.ensure_future(leaving)]
    try:
        await asyncio.wait({*works, reader.over}, return_when=asyncio.FIRST_COMPLETED)
        if reader.over.done() and reader.over.result() != ENDED:
            return reader.over.result()
        return await written if written.done() or reader.over.done() else LEFT
    finally:
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)


def abort_later(scope: Scope, after_s: float = LINGER_S) -> None:
    """Have the connection dropped: a server's polite closing waits for a client that reads no more, for ever."""
    try:
        extensions = scope["extensions"]
    except KeyError:
        return
    abort = (extensions or {}).get(ABORT, {}).get("abort")
    if callable(abort):
        asyncio.get_running_loop().call_later(after_s, abort)


async def gone(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        continue
