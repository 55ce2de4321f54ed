"""`tasktrail serve`: the data directory, the port, nats-server, and the processes that make up one deployment.

ServeError
├── CannotListen   the address can't be listened on: in use, not ours, or not allowed
└── NeverReady     it did not become ready in time
"""

import asyncio
import errno
import os
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import structlog
from msgspec import Struct

from app.child import Child
from app.local import Local, file_url, read_local, write_local
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
BACKLOG = 2048
OWNER = Owner("dev")
AUDIT_KEY_FILE = "audit-key.pem"
"""Where the key that signs checkpoints is, in the data directory, unless another file is named."""
VIEWS_FILE = "views.sqlite"
"""Where the views are, in the data directory, unless another database is named."""


class ServeError(Exception):
    """It can't be served; the message is one line for people."""


class CannotListen(ServeError):
    """The address can't be listened on."""


class NeverReady(ServeError):
    """The API did not become ready in time."""


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

    `announce` is called when the API is ready. Raises ServeError, ChildGaveUp, DirectoryError, EmbeddedServerError,
    LogError; then nothing of it runs any more.
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
    listening = await listen(site.http.host, site.http.port)
    house.callback(listening.close)
    nats = site.nats or await _own_nats(lock, site.sync_interval, house, hurry)
    connection = await Connection.open(nats, "tasktrail-supervisor")
    house.push_async_callback(connection.close)
    await _check_jetstream(connection, nats)
    token = await _settled_token(connection, lock.directory, site)
    certificate = site.http.ssl_certfile and site.http.ssl_certfile.resolve()
    ready = Ready(url=_url(listening, site.http), token=token, data_dir=lock.directory, certificate=certificate)
    views_url = site.views_url or file_url(lock.directory / VIEWS_FILE)
    key = site.audit_key or lock.directory / AUDIT_KEY_FILE
    children = _children(site, connection, nats, views_url, key, listening)
    house.push_async_callback(_stop, children, listening, lock.directory, token, hurry)
    is_ready = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child.keep(is_ready))
            await _until_ready(listening, secure=site.http.ssl_certfile is not None)
            with writing(lock.directory):
                local = Local(token=token, url=ready.url, nats=nats, certificate=certificate, views=views_url)
                write_local(lock.directory, local)
            is_ready.set()
            announce(ready)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _stop(
    children: list[Child], listening: socket.socket, directory: Path, token: str, hurry: asyncio.Event
) -> None:
    # Closed first: what came now would only wait for an API that does not come back. The API's own stays open.
    listening.close()
    for kind in ("api", "worker", "projector"):
        those = [child for child in children if child.name.startswith(kind)]
        await asyncio.gather(*[child.stop(GRACE_S, hurry) for child in those])
    try:
        write_local(directory, Local(token=token))
    except OSError as error:
        log.warning("serve.not_marked_as_stopped", directory=str(directory), reason=str(error))


def _children(
    site: Site, connection: Connection, nats: NatsAddress, views_url: str, key: Path, listening: socket.socket
) -> list[Child]:
    # Agents run in a worker, and have no business with the views: it is not told their address, password and all.
    kept = ("TASKTRAIL_VIEWS_URL", "TASKTRAIL_AUDIT_KEY")
    plain = {name: value for name, value in site.environment.items() if name not in kept}
    plain["TASKTRAIL_NATS_URL"] = nats.url
    environment = plain | {"TASKTRAIL_VIEWS_URL": views_url}
    descriptor = listening.fileno()

    async def on_death(worker: str) -> None:
        try:
            await announce_lost(connection, worker)
        except LogUnavailable as error:
            log.warning("serve.loss_not_announced", worker=worker, reason=str(error))

    api = Child("api", ["api", "--fd", str(descriptor)], environment, inherits=(descriptor,))
    signing = environment | {"TASKTRAIL_AUDIT_KEY": str(key.absolute())}
    projector = Child("projector", ["projector"], signing)
    numbers = range(1, site.worker_processes + 1)
    workers = [Child(f"worker-{number}", ["worker"], plain, on_death=on_death) for number in numbers]
    return [api, projector, *workers]


async def _own_nats(lock: Lock, sync_interval: str, house: AsyncExitStack, hurry: asyncio.Event) -> NatsAddress:
    server = await EmbeddedServer.start_locked(lock, sync_interval=sync_interval)

    async def end() -> None:
        if hurry.is_set():
            await server.kill()
        await server.stop()

    house.push_async_callback(end)
    return server.address


async def _check_jetstream(connection: Connection, nats: NatsAddress) -> None:
    try:
        await connection.api("INFO")
    except (RefusedByServer, LogUnavailable) as error:
        raise LogUnavailable(f"no JetStream at {hidden(nats.url)}: {error}") from error


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


async def listen(host: str, port: int, *, wait_s: float = 5.0) -> socket.socket:
    """A socket that listens there, waiting at most `wait_s` for whoever has the port. Raises CannotListen."""
    until = monotonic() + wait_s
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"{host} is no address of this machine: {error}") from error
    family, _, _, _, address = found[0]
    both = host == "::" and socket.has_dualstack_ipv6()
    while True:
        try:
            listening = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=both)
            # What is accepted inherits it; asyncio sets it only on sockets that it made itself. Without it a small
            # answer waits for the client's delayed acknowledgement.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listening
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            if error.errno != errno.EADDRINUSE:
                raise CannotListen(f"can't listen on {host}, port {port}: {reason}") from error
            if monotonic() >= until:
                raise CannotListen(f"port {port} of {host} is in use; choose another with --port") from error
        await asyncio.sleep(0.05)


def _url(listening: socket.socket, http: HttpSettings) -> str:
    """Where a client on this machine finds it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    scheme = "https" if http.ssl_certfile else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


async def _until_ready(listening: socket.socket, *, secure: bool) -> None:
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while not await _is_ready(listening, secure=secure):  # noqa: ASYNC110  # another process's readiness
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise NeverReady(f"the API was not ready within {READY_WITHIN_S:g} s") from error


async def _is_ready(listening: socket.socket, *, secure: bool) -> bool:
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    trust = ssl.create_default_context() if secure else None
    if trust is not None:
        # It is our own socket, and its certificate has another name on it.
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    try:
        # A connection to a child that dies meanwhile may wait in the socket's queue for ever.
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port, ssl=trust)
            try:
                writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
