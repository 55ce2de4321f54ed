"""A client on a bare socket, that costs as little as a client in Python can."""

import asyncio
from urllib.parse import urlsplit

import msgspec


class Client:
    """One connection, kept; one owner's. Build with `open`, `close` last."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = f"Host: bench\r\nAuthorization: Bearer {token}\r\n"

    @classmethod
    async def open(cls, url: str, token: str) -> "Client":
        """Raises OSError where nobody listens."""
        where = urlsplit(url)
        return cls(*await asyncio.open_connection(where.hostname, where.port), token)

    async def get(self, *paths: str) -> list[bytes]:
        """The bodies of these, all asked for at once; each must be answered 200."""
        asked = "".join(f"GET {path} HTTP/1.1\r\n{self._head}\r\n" for path in paths)
        self._writer.write(asked.encode())
        return [await self._answer(200) for _ in paths]

    async def post(self, path: str, body: object) -> bytes:
        """What is answered to this, which must be 201."""
        content = msgspec.json.encode(body)
        head = f"POST {path} HTTP/1.1\r\n{self._head}Content-Type: application/json\r\nContent-Length: {len(content)}"
        self._writer.write(head.encode() + b"\r\n\r\n" + content)
        return await self._answer(201)

    async def stream(self, path: str) -> None:
        """Have this stream from now on; nothing else can be asked for any more."""
        self._writer.write(f"GET {path} HTTP/1.1\r\n{self._head}Accept: text/event-stream\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head

    async def until(self, mark: bytes) -> None:
        """Return once this was read of the stream."""
        await self._reader.readuntil(mark)

    def close(self) -> None:
        """Leave."""
        self._writer.close()

    async def _answer(self, status: int) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        body = await self._reader.readexactly(int(length or b"0"))
        assert head.startswith(b"HTTP/1.1 %d " % status), head + body
        return body
