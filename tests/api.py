"""The API in this process, on a real port: for tests that speak HTTP and append facts themselves."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from msgspec import Struct

from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.api import build
from app.commands import Command, CreateTask
from app.feed import frame
from app.front import Front
from app.http_server import Server
from app.rooms import Rooms, open_rooms
from app.serving import spoken
from app.settings import HttpSettings, LogSettings
from app.sockets import SOCKETS
from app.tasks import Cause, Done
from eventstore.connection import NatsAddress
from eventstore.events import Owner, TaskId
from eventstore.log import Arrival
from eventstore.tokens import SCOPES, Plan, Scope

ALL_SCOPES: tuple[Scope, ...] = SCOPES
DEV = Owner("dev")
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""It trusts nobody: for clients of plain HTTP. Each would else read all whom the world trusts, which takes 30 ms."""
CAUSE = Cause(actor="test", causation_id="request-1", correlation_id="request-1")


class Api(Struct):
    """A running API: its rooms, its address, and a client that has a token with all scopes of owner `dev`."""

    rooms: Rooms
    url: str
    client: httpx.AsyncClient
    token: str
    connections: Callable[[], int]

    @property
    def bearer(self) -> dict[str, str]:
        """The header that says who we are."""
        return {"Authorization": f"Bearer {self.token}"}

    async def begin(self, *commands: Command) -> TaskId:
        """A task of owner `dev` to which these commands happened."""
        done = await self.rooms.tasks.create(DEV, CreateTask(agent="simulator", fingerprint="f1"), CAUSE)
        assert isinstance(done, Done)
        await self.tell(done.task.task_id, *commands)
        return done.task.task_id

    async def tell(self, task_id: TaskId, *commands: Command) -> None:
        """Have these commands happen, each of which must be granted."""
        for command in commands:
            done = await self.rooms.tasks.execute(DEV, task_id, command, CAUSE)
            assert isinstance(done, Done), done

    async def frames(self, task_id: TaskId) -> list[bytes]:
        """The task's frames, made from what the log holds."""
        return [frame(recorded) for recorded in await self.rooms.tasks.log.read(DEV, task_id)]

    async def arrivals(self) -> list[Arrival]:
        """All that is in the log, whosever it is."""
        log = self.rooms.tasks.log
        replay = await log.replay(after=0)
        try:
            last, found = await log.last_sequence(), list[Arrival]()
            while replay.position < last:
                found += await replay.take(1_000, within_s=1.0)
            return found
        finally:
            await replay.close()

    def metric(self, name: str, **labels: str) -> float:
        """One figure of `/metrics`, 0 where it was never counted."""
        return self.rooms.metrics.registry.get_sample_value(f"tasktrail_{name}", labels) or 0.0


@asynccontextmanager
async def running(
    nats: NatsAddress, *, http: HttpSettings | None = None, token: str = "tt_dev", views_url: str | None = None
) -> AsyncGenerator[Api]:
    """Serve until the context ends."""
    http = http or HttpSettings()
    catalogue = Catalogue([Simulator()], default="simulator")
    async with open_rooms(LogSettings(nats=nats), http, catalogue, views_url) as rooms:
        await rooms.tokens.add(token, DEV, ALL_SCOPES, plan=Plan(unlimited=True))
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            answering(build(rooms), rooms) as (url, server),
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30, verify=NO_TLS) as client,
        ):
            yield Api(rooms, url, client, token, lambda: len(server.server_state.connections))


@asynccontextmanager
async def answering(
    front: Front,
    rooms: Rooms,
    *,
    root_path: str = "",
    keep_alive_s: int = 5,
    certificate: Path | None = None,
) -> AsyncGenerator[tuple[str, Server]]:
    """Have this front answer until the context ends; its URL. `certificate`: a file that has its key, too."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    # What is accepted inherits it; asyncio sets it only where the listening socket named its protocol.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        front,  # pyright: ignore[reportArgumentType]  # litestar's ASGI types and uvicorn's differ in name
        http=spoken(front),
        **SOCKETS,
        log_config=None,
        access_log=False,
        lifespan="off",
        root_path=root_path,
        timeout_keep_alive=keep_alive_s,
        ssl_certfile=certificate,
        timeout_graceful_shutdown=2,
    )
    server = Server(config, rooms)
    serving = asyncio.ensure_future(server._serve([listening]))  # pyright: ignore[reportPrivateUsage]  # serve() would take the test's signals
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
    finally:
        rooms.drain()
        server.should_exit = True
        await serving
