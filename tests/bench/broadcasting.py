"""What a fan-out is measured against, as a process of its own: a bare asyncio protocol that writes each message of one
subject to everybody who asks it for anything. Arguments: the port, the address of NATS, the subject."""

import asyncio
import sys
from typing import cast

import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from app.freezing import freeze

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Everybody(asyncio.Protocol):
    """One of them."""

    transports: set[asyncio.WriteTransport] = set()  # noqa: RUF012  # one process, one set

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is none of asyncio's classes

    def data_received(self, data: bytes) -> None:
        del data
        self.transport.write(HEAD)
        self.transports.add(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transports.discard(self.transport)


async def broadcast(port: int, nats_url: str, subject: str) -> None:
    """Until killed."""
    client = Client()
    await client.connect(servers=[nats_url])

    async def tell(message: Msg) -> None:
        frame = b"id: 123456-1234567890\nevent: task.partial\ndata: %b\n\n" % message.data
        chunk = b"%x\r\n%b\r\n" % (len(frame), frame)
        for transport in Everybody.transports:
            transport.write(chunk)

    await client.subscribe(subject, cb=tell)  # pyright: ignore[reportUnknownMemberType]  # nats-py
    await client.flush()
    server = await asyncio.get_running_loop().create_server(Everybody, "127.0.0.1", port, backlog=2048)
    freeze()  # as the service does it
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(broadcast(int(sys.argv[1]), *sys.argv[2:]))
