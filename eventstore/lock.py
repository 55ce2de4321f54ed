"""One life at a time: the lock on a data directory, what an earlier life left running there, and how children die.

DirectoryError
├── DirectoryNotWritable   the data directory can't be made or written
└── DirectoryInUse         another instance, or a nats-server that it left behind, still has the data directory

In the directory: `lock`, which holds the pid of whoever has it.
"""

import asyncio
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import structlog

log = structlog.stdlib.get_logger()


class DirectoryError(Exception):
    """The data directory can't be ours; the message is one line for people."""


class DirectoryNotWritable(DirectoryError):
    """The data directory can't be made or written."""


class DirectoryInUse(DirectoryError):
    """Somebody else has the data directory."""


class Lock:
    """A data directory that is ours until `free`. Build with `take`.

    The lock belongs to the open file, and nats-server inherits that: as long as one of an earlier life runs, the
    directory is taken. Where a lock tells nothing (it was removed, or a network's file system forgets it), the pid
    file does.
    """

    def __init__(self, directory: Path, descriptor: int) -> None:
        self.directory = directory
        self.descriptor = descriptor
        self._ours = True

    @classmethod
    async def take(cls, data_dir: Path, *, wait_s: float = 5.0) -> "Lock":
        """Make the directory where it is missing, and lock it for this process and every nats-server that it starts
        there, waiting at most `wait_s` for whoever has it. Raises DirectoryInUse, DirectoryNotWritable.
        """
        with writing(data_dir):
            directory = _prepared(data_dir)
            descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            await _wait_for(directory, descriptor, wait_s)
            with writing(data_dir):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(directory, descriptor)

    def free(self) -> None:
        """Let others have it, once no nats-server of ours runs any more. Once is enough, twice is harmless."""
        if self._ours:
            self._ours = False
            os.close(self.descriptor)


@contextmanager
def writing(data_dir: Path) -> Generator[None]:
    """What fails inside is that the directory can't be written. Raises DirectoryNotWritable."""
    try:
        yield
    except OSError as error:
        raise DirectoryNotWritable(f"{data_dir} can't be written: {error.strerror or error}") from error


def write_privately(path: Path, content: bytes) -> None:
    """Put the file there whole, or not at all; readable by this user alone."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    draft.replace(path)


def dies_with(parent: int) -> Callable[[], None] | None:
    """What a child calls between fork and exec so as not to outlive us; None where the system can't (an orphan is then
    ended by the next life).

    By SIGKILL, which a stopped or hanging server obeys too, and at once: the next life waits for its lock. It costs
    nothing that was acknowledged, only a recovery (half a second per million records).
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def in_the_child() -> None:
        # Between a fork and its exec other threads' locks stay locked for ever: nothing is imported or logged here.
        libc.prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:
            # It died before that line, and nobody will signal us.
            os._exit(1)

    return in_the_child


def _prepared(data_dir: Path) -> Path:
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = data_dir.resolve()
    if not any(directory.iterdir()):
        # Only if it is new: shutting others out of a directory that holds something else would be rude.
        directory.chmod(0o700)
    return directory


async def _wait_for(directory: Path, lock: int, wait_s: float) -> None:
    until = monotonic() + wait_s
    while (server := _server_running_in(directory)) is not None or not _locked(lock):
        if server is not None and _is_orphan(server, directory):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(server, signal.SIGKILL)
                log.warning("nats_server.orphan_ended", pid=server)
        if monotonic() >= until:
            owner = _number_in(directory / "lock")
            pid = owner if owner and _process(owner) else server
            raise DirectoryInUse(f"{directory} is in use by another instance" + (f" (pid {pid})" if pid else ""))
        await asyncio.sleep(0.05)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _server_running_in(directory: Path) -> int | None:
    pid = _number_in(directory / "nats-server.pid")
    process = pid and _process(pid)
    return pid if process and str(directory / "nats-server.conf") in process[1] else None


def _is_orphan(server: int, directory: Path) -> bool:
    """Whether the process that started it is gone: its parent is no longer the one that the lock file names."""
    process = _process(server)
    # The lock file is read last: whoever started this nats-server had named itself there before.
    owner = _number_in(directory / "lock")
    return process is not None and owner is not None and process[0] != owner and not _serves(process[0])


def _serves(pid: int) -> bool:
    """Whether this process is a supervisor: then its nats-server is no orphan, whatever the lock file says."""
    process = _process(pid)
    return process is not None and "serve" in process[1] and ("tasktrail" in process[1] or "app" in process[1])


def _number_in(path: Path) -> int | None:
    try:
        return int(path.read_text()) if path.is_file() else None
    except (OSError, ValueError):
        return None


def _process(pid: int) -> tuple[int, str] | None:
    """Parent and command line of a process; None if there is none."""
    if Path("/proc/self/stat").exists():
        with suppress(OSError):
            stat, command = Path(f"/proc/{pid}/stat").read_text(), Path(f"/proc/{pid}/cmdline").read_text()
            return int(stat.rpartition(")")[2].split()[1]), command
        return None
    # One -o each: what follows a `=`, commas and all, would be that column's title.
    columns = ["-o", "ppid=", "-o", "command="]
    asked = subprocess.run(["ps", "-ww", *columns, "-p", str(pid)], capture_output=True, text=True, timeout=5)
    parent, _, command = asked.stdout.strip().partition(" ")
    return (int(parent), command) if parent else None
