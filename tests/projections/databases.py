"""The databases of the views' tests: a SQLite file, and a PostgreSQL cluster of our own, started and stopped here."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

INSTALL = "apt-get update && apt-get install -y postgresql"
DEBIAN = Path("/usr/lib/postgresql")


@cache
def programs() -> Path | None:
    """Where PostgreSQL's programs are, the newest release's; None: nowhere."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    installed = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parents[1].name))
    return installed[-1].parent if installed else None


class Cluster:
    """A PostgreSQL server on a socket in a directory of its own; it refuses to run as root, so another user runs it."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self._directory = directory
        self._programs = programs
        self._made = 0

    def init(self) -> None:
        directory = str(self._directory)
        os.chmod(directory, 0o755)
        if os.geteuid() == 0:
            shutil.chown(self._directory, "nobody")
        self._run(
            "initdb", "-D", f"{directory}/cluster", "-U", "tests", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"
        )

    def start(self) -> None:
        options = f"-k {self._directory} -c listen_addresses= -c fsync=off -c max_connections=50"
        self._run(
            "pg_ctl", "-D", f"{self._directory}/cluster", "-l", f"{self._directory}/log", "-o", options, "-w", "start"
        )

    def stop(self, *, at_once: bool = False) -> None:
        """`at_once`: as a crash would."""
        self._run("pg_ctl", "-D", f"{self._directory}/cluster", "-m", "immediate" if at_once else "fast", "-w", "stop")

    def new_database(self) -> str:
        """The URL of an empty one."""
        self._made += 1
        name = f"views_{self._made}"
        self._run("createdb", "-h", str(self._directory), "-U", "tests", name)
        return f"postgresql://tests@/{name}?host={self._directory}"

    def forget(self, url: str) -> None:
        """Drop all tables of that database."""
        name = url.partition("@/")[2].partition("?")[0]
        again = "DROP SCHEMA public CASCADE; CREATE SCHEMA public;"
        self._run("psql", "-h", str(self._directory), "-U", "tests", "-d", name, "-q", "-c", again)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "nobody", "--", *command]
        # Not captured by a pipe: the server would inherit it, and nobody would ever see its end.
        with tempfile.TemporaryFile() as said:
            outcome = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=60)
            said.seek(0)
            assert outcome.returncode == 0, said.read().decode()


@contextmanager
def cluster() -> Generator[Cluster]:
    """A running PostgreSQL. Skips the test, and says so, where it is not installed; in CI that is a failure."""
    found = programs()
    if found is None:
        why = f"PostgreSQL is not installed, so the views were not tried on it: {INSTALL}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    # A short path, readable by the other user: a socket's name has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="pg-") as directory:
        running = Cluster(Path(directory), found)
        running.init()
        running.start()
        try:
            yield running
        finally:
            running.stop(at_once=True)
