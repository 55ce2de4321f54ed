"""`python -m app serve` as a process of its own: for tests that kill it, stop it, and read what it prints."""

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import httpx

from tests.api import NO_TLS

WITHIN_S = 30


class Serving:
    """A service that has said that it is ready."""

    def __init__(self, process: Process, printed: str, errors: BinaryIO) -> None:
        self.process = process
        self.printed = printed
        self._errors = errors

    @property
    def url(self) -> str:
        """As printed."""
        return self._printed(r"URL +(\S+)")

    @property
    def token(self) -> str:
        """As printed."""
        return self._printed(r"token +(\S+)")

    @property
    def curl(self) -> str:
        """As printed."""
        return self._printed(r"(curl .*)")

    @property
    def port(self) -> int:
        """Where it listens."""
        return httpx.URL(self.url).port or 0

    @property
    def logs(self) -> str:
        """What all its processes wrote to standard error so far."""
        self._errors.seek(0)
        return self._errors.read().decode()

    def client(self) -> httpx.AsyncClient:
        """One that has its token."""
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.token}"}, timeout=WITHIN_S, verify=NO_TLS
        )

    async def logged(self, event: str) -> None:
        """Return once there is such a line."""
        async with asyncio.timeout(WITHIN_S):
            while event not in self.logs:  # noqa: ASYNC110  # another process writes it
                await asyncio.sleep(0.02)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; the exit code."""
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), WITHIN_S)

    def _printed(self, pattern: str) -> str:
        found = re.search(pattern, self.printed)
        assert found, self.printed
        return found[1]


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "app", *options]


def clean_environment(**more: str) -> dict[str, str]:
    """Ours, without what would set options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TASKTRAIL_")} | more


@asynccontextmanager
async def serving(
    data_dir: Path,
    *options: str,
    port: int = 0,
    environment: dict[str, str] | None = None,
    open_files: tuple[int, int] | None = None,
) -> AsyncGenerator[Serving]:
    """Start it and wait until it says that it is ready; whatever still runs at the end is killed with it. `open_files`
    are its soft and its hard limit."""
    with TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *command("serve", "--data-dir", str(data_dir), "--port", str(port), *options),
            stdout=PIPE,
            stderr=errors,
            env=clean_environment(**(environment or {})),
            preexec_fn=open_files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, open_files)),
        )
        try:
            assert process.stdout is not None
            printed = ""
            async with asyncio.timeout(WITHIN_S):
                while "curl " not in printed:
                    line = await process.stdout.readline()
                    assert line, f"it ended: {printed}"
                    printed += line.decode()
            yield Serving(process, printed, errors)
        except BaseException as error:
            errors.seek(0)
            error.add_note(errors.read().decode()[-5000:])
            raise
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def attempt(*options: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that should end by itself."""
    return await ended(*command(*options), env=clean_environment(**environment))


async def ended(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    """The same of any program, which is killed if it does not end in time."""
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE, env=env, cwd=cwd)
    try:
        out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def listed(columns: str) -> str:
    """Every process of this machine, as `ps` shows it to anybody."""
    return subprocess.run(["ps", "-ww", "-eo", columns], capture_output=True, text=True, check=True).stdout


def family(pid: int) -> dict[str, int]:
    """The running descendants of a process, by what they are: `api`, `projector`, `worker`, `nats-server`."""
    return dict(members(pid))


def members(pid: int) -> list[tuple[str, int]]:
    """The same where there are several of a kind."""
    asked = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,stat=,command="], capture_output=True, text=True, check=True
    )
    found: list[tuple[str, int]] = []
    for line in asked.stdout.splitlines():
        child, parent, state, *words = line.split()
        if int(parent) == pid and not state.startswith("Z"):
            name = next((word for word in ("api", "projector", "worker") if word in words), Path(words[0]).name)
            found.append((name, int(child)))
    return found


def runs(pid: int) -> bool:
    """Whether this process runs (one that nobody has reaped does not)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


async def until_gone(*pids: int) -> None:
    """Return once none of these processes runs."""
    async with asyncio.timeout(WITHIN_S):
        while any(map(runs, pids)):  # noqa: ASYNC110  # children of others: nothing wakes us when they end
            await asyncio.sleep(0.02)


def is_one_line(text: str) -> bool:
    """Whether this is how a refusal reads."""
    return text.startswith("tasktrail: ") and text.count("\n") == 1 and text.endswith("\n")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
