"""Where an audit command reads from, as its options say: a service, NATS, a stopped service's directory, or a file."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import click
from msgspec import Struct

from app.asking import NATS, SERVICE, Asking
from app.audit_http import open_http
from app.audit_key import audit_key
from app.checkpoints import Checkpoints
from app.client import local_in, where
from app.local import read_local
from app.logs import configure_logs
from app.replies import NoAddress, NotTried, Refused
from app.supervisor import AUDIT_KEY_FILE
from app.token_commands import connected, replicas_of
from eventstore.checkpointing import Signed, Signer
from eventstore.connection import Connection, NatsAddress, hidden
from eventstore.events import Owner
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.lock import DirectoryError, DirectoryInUse, Lock
from eventstore.server import EmbeddedServer, EmbeddedServerError
from projections.imports import ExportFile
from projections.sources import LogSource, Source

LOCK_WITHIN_S = 0.3


class Place(Struct, frozen=True, kw_only=True):
    """What the options say: a file, else a URL, else NATS, else the data directory."""

    data_dir: Path
    url: str | None = None
    token: str | None = None
    retry_for_s: float | None = None
    nats: NatsAddress | None = None
    file: Path | None = None


class Opened(Struct, frozen=True):
    """A source; what it is, for people; the log itself, where it is that; how to have it signed, where somebody can be
    asked, else why nobody can; and whose records it shows, where not all."""

    source: Source
    what: str
    log: JetStreamLog | None = None
    sign: Callable[[], Awaitable[Signed]] | None = None
    unsigned: str = ""
    owner: Owner | None = None


FILE_OPTION = click.Option(
    ["--file"],
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An NDJSON export, instead of a log.",
)


class AuditCommand(Asking):
    """A command that reads a log, wherever it is: its function's first argument is a Place (by `click.pass_obj`)."""

    where = (*SERVICE, *NATS[1:])

    def ask(self, ctx: click.Context) -> object:
        """Put the options together first."""
        given = {option.name: ctx.params.pop(option.name) for option in self.where}
        url = given.get("nats_url")
        nats = None if url is None else NatsAddress(url=url, creds=given["nats_creds"], ca=given["nats_ca"])
        if sum(one is not None for one in (given.get("url"), url, given.get("file"))) > 1:
            raise click.UsageError("--url, --nats-url or --file: one of them")
        # Standard output is for what was asked for, and warnings of the connection are not.
        configure_logs("error")
        ctx.obj = Place(
            data_dir=given["data_dir"],
            url=given.get("url"),
            token=given.get("token"),
            retry_for_s=given.get("retry_for"),
            nats=nats,
            file=given.get("file"),
        )
        try:
            return super().ask(ctx)
        except (DirectoryError, EmbeddedServerError) as error:
            raise NotTried(str(error)) from error
        except Refused as error:
            # Exit code 1 says that something is wrong with what was audited, and nothing else does.
            raise NotTried(f"refused: {error}") from error

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, and where the log is."""
        own = super().get_params(ctx)
        return [*own[:-1], *self.where, *own[-1:]]


class ReadingCommand(AuditCommand):
    """One that reads an export's file as well."""

    where = (*AuditCommand.where, FILE_OPTION)


class WritingCommand(AuditCommand):
    """One that writes to the log itself, which no service lets anybody do."""

    where = NATS


@asynccontextmanager
async def opened(place: Place, *, make: bool = False) -> AsyncGenerator[Opened]:
    """The source. `make`: it will be written to, so a log that is missing is made, and no service will do.

    Raises ClientError, LogError, DirectoryError, EmbeddedServerError."""
    async with AsyncExitStack() as stack:
        if place.file is not None:
            yield Opened(ExportFile.open(place.file), str(place.file))
        elif place.url is not None:
            yield await _service(stack, place)
        elif place.nats is not None:
            yield await _nats(stack, place.nats, make=make)
        else:
            yield await _directory(stack, place, make=make)


async def _service(stack: AsyncExitStack, place: Place) -> Opened:
    address = where(place.data_dir, place.url, place.token)
    source = await stack.enter_async_context(open_http(address, place.retry_for_s))
    what = f"the service at {address.url}"
    if source.whole:
        return Opened(source, what, sign=source.sign)
    why = f"this token is shown the records of {source.owner} only, and a checkpoint is about everybody's"
    return Opened(source, what, unsigned=why, owner=source.owner)


async def _nats(stack: AsyncExitStack, nats: NatsAddress, *, make: bool) -> Opened:
    connection = await stack.enter_async_context(connected(nats, "tasktrail-audit"))
    log = await _log(stack, connection, make=make)
    return Opened(LogSource(log), f"NATS at {hidden(nats.url)}", log, Signer(connection).sign)


async def _log(stack: AsyncExitStack, connection: Connection, *, make: bool) -> JetStreamLog:
    replicas = await replicas_of(connection, STREAM)
    if not replicas and not make:
        raise NotTried("there is no log there yet")
    log = await JetStreamLog.open(connection, replicas=replicas or 1)
    stack.push_async_callback(log.close)
    return log


async def _directory(stack: AsyncExitStack, place: Place, *, make: bool) -> Opened:
    """Of a running service, that service; else its log, by a nats-server of our own for the while."""
    local = read_local(place.data_dir)
    if make or (place.data_dir / "nats").is_dir():
        # Where it is in use, the service that has it is asked; it is asked for an address below, if it has none.
        with suppress(DirectoryInUse):
            lock = await Lock.take(place.data_dir, wait_s=LOCK_WITHIN_S)
            return await _stopped(stack, lock, make=make)
        if local is None or local.url is None:
            raise DirectoryInUse(f"{place.data_dir} is in use, by a service that is starting or by another audit")
    local = local_in(place.data_dir)
    if make:
        if local.nats is None:
            raise NoAddress(f"the service of {place.data_dir} does not say where its NATS is: give --nats-url")
        return await _nats(stack, local.nats, make=True)
    return await _service(stack, place)


async def _stopped(stack: AsyncExitStack, lock: Lock, *, make: bool) -> Opened:
    try:
        server = await EmbeddedServer.start_locked(lock)
    except BaseException:
        lock.free()
        raise
    stack.push_async_callback(server.stop)
    connection = await Connection.open(server.address, "tasktrail-audit")
    stack.push_async_callback(connection.close)
    log = await _log(stack, connection, make=make)
    key = lock.directory / AUDIT_KEY_FILE

    async def sign() -> Signed:
        checkpoints = Checkpoints(log, audit_key(key))
        try:
            return await checkpoints.write()
        finally:
            await checkpoints.close()

    there = key.exists()
    what, why = f"the data directory {lock.directory}", "" if there else f"there is no key {key}"
    return Opened(LogSource(log), what, log, sign if there else None, why)
