"""A client that speaks HTTP on a bare socket: it sees where a chunked body really ends, and can break off rudely."""

import asyncio
import socket
import struct

from tests.log.logs import SOON_S


class BrokenOff(Exception):
    """The connection ended in the middle of a body: no end was said."""


class Wire:
    """One request, one answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self._text = b""

    @classmethod
    async def ask(
        cls, url: str, path: str, headers: dict[str, str] | None = None, *, method: str = "GET", room_bytes: int = 0
    ) -> "Wire":
        """Send a request. With `room_bytes` the kernel takes in little that is not read."""
        host, _, port = url.removeprefix("http://").partition(":")
        asking = socket.socket()
        asking.setblocking(False)
        if room_bytes:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes)
        await asyncio.get_running_loop().sock_connect(asking, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=asking, limit=room_bytes or 65_536)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        return cls(reader, writer)

    async def head(self) -> "Wire":
        """Read the answer's status and headers."""
        async with asyncio.timeout(SOON_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
        return self

    async def chunk(self) -> bytes:
        """The next chunk; empty: the end was said. Raises BrokenOff."""
        try:
            async with asyncio.timeout(SOON_S):
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                content = await self.reader.readexactly(size + 2)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenOff from error
        return content[:-2]

    async def frames(self, count: int) -> list[bytes]:
        """The next so many frames, without pings and `retry`. Raises BrokenOff."""
        found: list[bytes] = []
        while len(found) < count:
            piece, end, rest = self._text.partition(b"\n\n")
            if end:
                self._text = rest
                if not piece.startswith((b":", b"retry:")):
                    found.append(piece + end)
                continue
            more = await self.chunk()
            if not more:
                raise AssertionError(f"the end came after {len(found)} of {count} frames")
            self._text += more
        return found

    async def rest(self) -> tuple[bytes, bool]:
        """All bytes that are left, and whether the end was said."""
        text, self._text = self._text, b""
        try:
            while more := await self.chunk():
                text += more
        except BrokenOff:
            return text, False
        return text, True

    async def close(self) -> None:
        """Leave politely."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return  # the other side was faster

    def reset(self) -> None:
        """Leave by a reset (RST), as when a machine loses its power or a proxy its patience."""
        asking = self.writer.get_extra_info("socket")
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def frames_in(text: bytes) -> list[bytes]:
    """Whole frames, without pings and `retry`; what was broken off in the middle is none."""
    pieces = text.split(b"\n\n")[:-1]
    return [piece + b"\n\n" for piece in pieces if not piece.startswith((b":", b"retry:"))]
