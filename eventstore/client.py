"""nats-py's client, with a short way for what comes by the thousand: read from the socket and taken at once."""

from collections.abc import Callable

import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.subscription import Subscription

log = structlog.stdlib.get_logger()

STATUS_LINE = len(b"NATS/1.0")


class Delivery(Struct, frozen=True, gc=False):
    """A message as it came; `raw` are its headers, as they were on the wire."""

    subject: str
    reply: str
    data: bytes
    raw: bytes | None = None

    @property
    def headers(self) -> dict[str, str]:
        """With what the server's own messages say in their first line as `Status` and `Description`."""
        if not self.raw:
            return {}
        first, _, rest = self.raw.partition(b"\r\n")
        found = headers_in(rest)
        if status := first[STATUS_LINE:].strip().decode(errors="replace"):
            found["Status"], _, found["Description"] = status.partition(" ")
        return found

    @property
    def plain(self) -> bool:
        """Whether its headers say nothing but how it was appended, which nobody asks for."""
        return self.raw is None or (
            self.raw.startswith(b"NATS/1.0\r\nNats-Expected-Last-") and self.raw.count(b"\r\n") <= 3
        )


Take = Callable[[Delivery], None]


class StraightClient(Client):
    """A client some of whose subscriptions are taken at once, in order, and never fall behind: whoever takes is called
    from where the socket is read. nats-py puts each message into a queue, which a task of its own empties, and reads
    its headers; that costs as much again as reading the socket (docs/decisions/tail.md)."""

    def __init__(self) -> None:
        super().__init__()
        self._takers: dict[int, Take] = {}

    def straight(self, subscription: Subscription, take: Take) -> None:
        """Have `take` called for each of its messages. It must not raise, nor take long."""
        self._takers[subscription._id] = take  # pyright: ignore[reportPrivateUsage]  # what the wire calls it

    def forget(self, subscription: Subscription) -> None:
        """Call nobody for it any more."""
        self._takers.pop(subscription._id, None)  # pyright: ignore[reportPrivateUsage]  # as above

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        take = self._takers.get(sid)
        if take is None:
            return await super()._process_msg(sid, subject, reply, data, headers)
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        try:
            take(Delivery(subject.decode(), reply.decode(), data, headers))
        except Exception:
            # Raised further it would end the reading of this socket, for everybody.
            log.exception("nats.delivery_failed", subject=subject.decode(errors="replace"))

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # nats-py's own reading looks at every letter of them.
        return headers_in(raw)


def headers_in(raw: bytes) -> dict[str, str]:
    """Lines of `name: value`."""
    found: dict[str, str] = {}
    for line in raw.decode(errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found
