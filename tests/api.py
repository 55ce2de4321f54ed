"""The API in this process, on a real port: for tests that speak HTTP and append facts themselves."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from msgspec import Struct

from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.api import Rooms, Server, build, open_rooms
from app.settings import HttpSettings, LogSettings
from eventstore.connection import NatsAddress
from eventstore.events import Owner
from eventstore.tokens import SCOPES, Scope

ALL_SCOPES: tuple[Scope, ...] = SCOPES


class Api(Struct):
    """A running API: its rooms, its address, and a client that has a token with all scopes of owner `dev`."""

    rooms: Rooms
    url: str
    client: httpx.AsyncClient
    token: str


@asynccontextmanager
async def running(
    nats: NatsAddress, *, http: HttpSettings | None = None, token: str = "tt_dev"
) -> AsyncGenerator[Api]:
    """Serve until the context ends."""
    http = http or HttpSettings()
    catalogue = Catalogue([Simulator()], default="simulator")
    listening = socket.create_server(("127.0.0.1", 0))
    async with open_rooms(LogSettings(nats=nats), http, catalogue) as rooms:
        await rooms.tokens.add(token, Owner("dev"), ALL_SCOPES)
        config = uvicorn.Config(
            build(rooms),  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and uvicorn's differ in name
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        server = Server(config, rooms.streams)
        serving = asyncio.ensure_future(server._serve([listening]))  # pyright: ignore[reportPrivateUsage]  # serve() would take the test's signals
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as client:
                yield Api(rooms, url, client, token)
        finally:
            rooms.streams.drain()
            server.should_exit = True
            await serving
