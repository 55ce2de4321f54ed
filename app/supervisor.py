"""`tasktrail serve`: the data directory, the port, nats-server, and the processes that make up one deployment.

ServeError
├── CannotListen   the address can't be listened on: in use, not ours, or not allowed
└── NeverReady     it did not become ready in time
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from msgspec import Struct

from app.child import Child
from app.listening import listen_together
from app.local import Local, file_url, read_local, write_local
from app.readiness import Readiness
from app.settings import HttpSettings
from eventstore.connection import Connection, NatsAddress, RefusedByServer, hidden
from eventstore.events import Owner
from eventstore.lock import Lock, writing
from eventstore.log import LogUnavailable
from eventstore.queue import announce_lost
from eventstore.server import SYNC_INTERVAL, EmbeddedServer
from eventstore.tokens import SCOPES, Plan, Tokens, new_token

log = structlog.stdlib.get_logger()

GRACE_S = 10.0
READY_WITHIN_S = 60.0
OWNER = Owner("dev")
AUDIT_KEY_FILE = "audit-key.pem"
"""Where the key that signs checkpoints is, in the data directory, unless another file is named."""
VIEWS_FILE = "views.sqlite"
"""Where the views are, in the data directory, unless another database is named."""


class Site(Struct, frozen=True, kw_only=True):
    """What one `serve` is told. `environment` is its children's; `nats` is None where we start one of our own;
    `views_url` is None where the views are in the data directory, `audit_key` where the key is."""

    data_dir: Path
    http: HttpSettings
    environment: dict[str, str]
    nats: NatsAddress | None = None
    views_url: str | None = None
    audit_key: Path | None = None
    token: str | None = None
    replicas: int = 1
    api_processes: int = 1
    worker_processes: int = 1
    sync_interval: str = SYNC_INTERVAL


class Ready(Struct, frozen=True, kw_only=True):
    """What a newcomer is shown."""

    url: str
    token: str
    data_dir: Path
    certificate: Path | None = None


async def serve(site: Site, announce: Callable[[Ready], None]) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, then stop all of it: the API first, nats-server last; a second signal kills.

    `announce` is called when all API processes are ready. Raises ServeError, ChildGaveUp, DirectoryError,
    EmbeddedServerError, LogError; then nothing of it runs any more.
    """
    told, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if told.is_set() else told).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    async with AsyncExitStack() as house:
        running = asyncio.create_task(_run(site, announce, house, hurry))
        stopping = asyncio.create_task(told.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        # From here on nobody cancels us: a second signal only hurries, and the rooms are left in order.
        if told.is_set():
            log.info("serve.stopping")
        stopping.cancel()
        running.cancel()
        await asyncio.wait({running})
    if not running.cancelled():
        running.result()


async def _run(site: Site, announce: Callable[[Ready], None], house: AsyncExitStack, hurry: asyncio.Event) -> None:
    """Open the rooms, each to be left by `house` in the opposite order, and keep the children running."""
    lock = await Lock.take(site.data_dir)
    house.callback(lock.free)
    listening = await listen_together(site.http.host, site.http.port, site.api_processes)
    house.callback(_close, listening)
    readiness = house.enter_context(Readiness.open())
    below = await house.enter_async_context(AsyncExitStack())
    children: list[Child] = []
    house.push_async_callback(_stop, children, listening, lock.directory, hurry)
    views_url = site.views_url or file_url(lock.directory / VIEWS_FILE)
    is_ready = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:

            def begin(more: list[Child]) -> None:
                children.extend(more)
                for child in more:
                    group.create_task(child.keep(is_ready))

            def begin_apis(nats: NatsAddress) -> None:
                begin(_apis(site, nats, views_url, listening, readiness))

            nats = site.nats or await _own_nats(lock, site.sync_interval, below, hurry, begin_apis)
            connection = await _connected(nats, below)
            if site.nats is not None:
                begin_apis(nats)
            token = await _settled_token(connection, lock.directory, site)
            readiness.go()
            apis = {child.name for child in children}
            begin(_others(site, connection, nats, views_url, site.audit_key or lock.directory / AUDIT_KEY_FILE))
            await readiness.of_all(apis, READY_WITHIN_S)
            ready = _ready(site, listening[0], token, lock.directory)
            with writing(lock.directory):
                there = Local(token=token, url=ready.url, nats=nats, certificate=ready.certificate, views=views_url)
                write_local(lock.directory, there)
            is_ready.set()
            announce(ready)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _stop(children: list[Child], listening: list[socket.socket], directory: Path, hurry: asyncio.Event) -> None:
    # Closed first: what came now would only wait for an API that does not come back. The API's own stay open.
    _close(listening)
    for kind in ("api", "worker", "projector"):
        those = [child for child in children if child.name.startswith(kind)]
        await asyncio.gather(*[child.stop(GRACE_S, hurry) for child in those])
    kept = read_local(directory)
    try:
        if kept is not None:
            write_local(directory, Local(token=kept.token))
    except OSError as error:
        log.warning("serve.not_marked_as_stopped", directory=str(directory), reason=str(error))


def _ready(site: Site, listening: socket.socket, token: str, directory: Path) -> Ready:
    certificate = site.http.ssl_certfile and site.http.ssl_certfile.resolve()
    return Ready(url=_url(listening, site.http), token=token, data_dir=directory, certificate=certificate)


def _close(listening: list[socket.socket]) -> None:
    for one in listening:
        one.close()


def _environment(site: Site, nats: NatsAddress) -> dict[str, str]:
    # Agents run in a worker, and have no business with the views: it is not told their address, password and all.
    kept = ("TASKTRAIL_VIEWS_URL", "TASKTRAIL_AUDIT_KEY")
    plain = {name: value for name, value in site.environment.items() if name not in kept}
    return plain | {"TASKTRAIL_NATS_URL": nats.url}


def _apis(
    site: Site, nats: NatsAddress, views_url: str, listening: list[socket.socket], readiness: Readiness
) -> list[Child]:
    """One for each socket, which all its lives inherit: what waits there for one that died is answered by the next."""
    environment = _environment(site, nats) | {"TASKTRAIL_VIEWS_URL": views_url}
    go, ready = readiness.inherited
    apis: list[Child] = []
    for number, one in enumerate(listening, 1):
        name = "api" if len(listening) == 1 else f"api-{number}"
        words = ["api", "--fd", str(one.fileno()), "--go-fd", str(go), "--ready-fd", str(ready), "--name", name]
        apis.append(Child(name, words, environment, inherits=(one.fileno(), go, ready)))
    return apis


def _others(site: Site, connection: Connection, nats: NatsAddress, views_url: str, key: Path) -> list[Child]:
    async def on_death(worker: str) -> None:
        try:
            await announce_lost(connection, worker)
        except LogUnavailable as error:
            log.warning("serve.loss_not_announced", worker=worker, reason=str(error))

    plain = _environment(site, nats)
    signing = plain | {"TASKTRAIL_VIEWS_URL": views_url, "TASKTRAIL_AUDIT_KEY": str(key.absolute())}
    projector = Child("projector", ["projector"], signing)
    numbers = range(1, site.worker_processes + 1)
    workers = [Child(f"worker-{number}", ["worker"], plain, on_death=on_death) for number in numbers]
    return [projector, *workers]


async def _own_nats(
    lock: Lock,
    sync_interval: str,
    below: AsyncExitStack,
    hurry: asyncio.Event,
    begin_apis: Callable[[NatsAddress], None],
) -> NatsAddress:
    """A server of ours. The API begins meanwhile: either takes about a second, where the log is long."""
    server = await EmbeddedServer.start_locked(lock, sync_interval=sync_interval, on_address=begin_apis)

    async def end() -> None:
        if hurry.is_set():
            await server.kill()
        await server.stop()

    below.push_async_callback(end)
    return server.address


async def _connected(nats: NatsAddress, below: AsyncExitStack) -> Connection:
    connection = await Connection.open(nats, "tasktrail-supervisor")
    below.push_async_callback(connection.close)
    try:
        await connection.api("INFO")
    except (RefusedByServer, LogUnavailable) as error:
        raise LogUnavailable(f"no JetStream at {hidden(nats.url)}: {error}") from error
    return connection


async def _settled_token(connection: Connection, directory: Path, site: Site) -> str:
    """The one given, else the one kept, else a new one. A kept one that was revoked stays so."""
    tokens = await Tokens.open(connection, replicas=site.replicas)
    try:
        kept = read_local(directory)
        token = site.token or (kept.token if kept and await tokens.find(kept.token) else new_token())
        # One that an older release made gets the scopes that have come since.
        await tokens.add(token, OWNER, SCOPES, note="made by tasktrail serve", plan=Plan(unlimited=True))
        if kept is None or kept.token != token:
            with writing(directory):
                write_local(directory, Local(token=token))
        return token
    finally:
        await tokens.close()


def _url(listening: socket.socket, http: HttpSettings) -> str:
    """Where a client on this machine finds it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    scheme = "https" if http.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
