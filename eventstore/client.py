"""nats-py's client, with a short way for what comes by the thousand: read from the socket and taken at once."""

import asyncio
from collections.abc import Callable

import structlog
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import ProtocolError
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser

log = structlog.stdlib.get_logger()

STATUS_LINE = len(b"NATS/1.0")
LARGE = 64 * 1024
"""A message that is longer, and did not come whole, nats-py puts together."""


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
        raw = self.raw
        if raw is None:
            return True
        # One line, or (joining.py) those of a batch.
        lines = 6 if b"\r\nNats-Batch-Id: " in raw else 3
        return raw.startswith(b"NATS/1.0\r\nNats-Expected-Last-") and raw.count(b"\r\n") <= lines


Take = Callable[[Delivery], None]


class _Reading(Parser):
    """nats-py's reading of the socket, but for messages that are taken at once: those are cut out of what came as they
    are, and no regular expression looks at them, nor does anything wait for anything between one and the next."""

    def __init__(self, client: "StraightClient") -> None:
        super().__init__(client)  # pyright: ignore[reportUnknownMemberType]  # nats-py: untyped
        self._client = client

    def reset(self) -> None:
        """Another connection."""
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        """More of what the server says."""
        if self.state == AWAITING_CONTROL_LINE:
            if self.buf:  # the begin of a line
                data = bytes(self.buf) + data
                self.buf.clear()
            try:
                data = self._take_all(self._rest + data if self._rest else data)
            except (ValueError, IndexError) as error:
                # nats-py connects anew after this one only; after any other it reads no more, and nobody is told.
                raise ProtocolError("nats: malformed MSG") from error
        if data:
            await super().parse(data)

    def _take_all(self, data: bytes) -> bytes:
        """What begins with something else than a message to be taken."""
        self._rest = b""
        at, length = 0, len(data)
        while at < length:
            headed = data.startswith(b"HMSG ", at)
            if not headed and not data.startswith(b"MSG ", at):
                return data[at:]
            line_ends = data.find(b"\r\n", at)
            if line_ends < 0:
                return data[at:]
            words = data[at:line_ends].split()
            # MSG <subject> <sid> [reply] <bytes>, HMSG <subject> <sid> [reply] <bytes of headers> <bytes in all>
            take = self._client.takers.get(int(words[2]))
            if take is None:
                return data[at:]
            begins, size = line_ends + 2, int(words[-1])
            ends = begins + size
            if ends + 2 > length:
                if size > LARGE:
                    return data[at:]
                self._rest = data[at:]
                return b""
            reply = words[3] if len(words) == 5 + headed else b""
            headers_end = begins + int(words[-2]) if headed else begins
            headers = data[begins:headers_end] if headed else None
            subject = words[1].decode(errors="replace")  # others may publish under any bytes
            self._client.took(take, Delivery(subject, reply.decode(errors="replace"), data[headers_end:ends], headers))
            at = ends + 2
        return b""


class StraightClient(Client):
    """A client some of whose subscriptions are taken at once, in order, and never fall behind: whoever takes is called
    from where the socket is read. nats-py puts each message into a queue, which a task of its own empties, and reads
    its headers; that costs as much again as reading the socket (docs/decisions/tail.md)."""

    def __init__(self) -> None:
        super().__init__()
        self.takers: dict[int, Take] = {}
        self._ps = _Reading(self)

    def straight(self, subscription: Subscription, take: Take) -> None:
        """Have `take` called for each of its messages. It must not raise, nor take long."""
        self.takers[subscription._id] = take  # pyright: ignore[reportPrivateUsage]  # what the wire calls it

    def forget(self, subscription: Subscription) -> None:
        """Call nobody for it any more."""
        self.takers.pop(subscription._id, None)  # pyright: ignore[reportPrivateUsage]  # as above

    def put(self, subject: str, reply: str, head: bytes, payload: bytes) -> bool:
        """Have a message sent with whatever else waits to be, without waiting; `head` are its headers, as they are on
        the wire. False: it was not taken, for there is no connection, or more waits already than may, or it is
        more than the server takes."""
        head_bytes, payload_bytes = len(head), len(payload)
        # One piece: nats-py makes it of four, and looks at every letter of subject, reply and headers.
        line = f"HPUB {subject} {reply} {head_bytes} {head_bytes + payload_bytes}\r\n".encode()
        command = b"".join((line, head, payload, b"\r\n"))
        waiting = self._pending_data_size + len(command)
        if not self.is_connected or self.is_draining_pubs or waiting > self._max_pending_size or not self._flush_queue:
            return False
        if head_bytes + payload_bytes > self._max_payload:
            return False  # the server would end the connection, for good
        self._pending.append(command)
        self._pending_data_size = waiting
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_bytes
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(asyncio.Future())
        return True

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        take = self.takers.get(sid)
        if take is None:
            return await super()._process_msg(sid, subject, reply, data, headers)
        self.took(take, Delivery(subject.decode(errors="replace"), reply.decode(errors="replace"), data, headers))

    async def _process_connect_init(self) -> None:
        # nats-py drops what was half read as it lets go of a connection; some more of that may be read after.
        self._ps.reset()
        await super()._process_connect_init()

    def took(self, take: Take, message: Delivery) -> None:
        """Have it taken, whatever comes of it."""
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(message.data)
        try:
            take(message)
        except Exception:
            # Raised further it would end the reading of this socket, for everybody.
            log.exception("nats.delivery_failed", subject=message.subject)

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
