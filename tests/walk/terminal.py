"""The command line as its users have it: a process of its own, and between it and the API a line that can be cut."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from msgspec import Struct

from tests.api import Api
from tests.log.logs import SOON_S

TASKTRAIL = (sys.executable, "-m", "app")


class Said(Struct, frozen=True):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def environment(api: Api | None = None, **more: str) -> dict[str, str]:
    """This process's, and where the API is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TASKTRAIL_", "COV"))}
    address = {} if api is None else {"TASKTRAIL_URL": api.url, "TASKTRAIL_TOKEN": api.token}
    return kept | address | more


class Terminal:
    """Where commands are begun; closed, it leaves none behind."""

    def __init__(self) -> None:
        self._begun: list[Process] = []

    async def begin(self, *words: str, env: dict[str, str], stdout: int = PIPE) -> Process:
        """Start a command."""
        process = await asyncio.create_subprocess_exec(
            *TASKTRAIL, *words, env=env, stdin=PIPE, stdout=stdout, stderr=PIPE
        )
        self._begun.append(process)
        return process

    async def close(self) -> None:
        """End what a test that failed has left."""
        for process in self._begun:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def end_of(process: Process, stdin: str = "") -> Said:
    """What a command says until it ends, which it does in time, or is killed. It never says a traceback."""
    try:
        async with asyncio.timeout(SOON_S):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"still running, having said: {out.decode()!r} {err.decode()!r}") from None
    assert process.returncode is not None
    said = Said(process.returncode, (out or b"").decode(), err.decode())  # None: it has a terminal
    assert "Traceback" not in said.out + said.err, said.err
    return said


async def tasktrail(*words: str, env: dict[str, str], stdin: str = "") -> Said:
    """Run a command to its end."""
    terminal = Terminal()
    try:
        return await end_of(await terminal.begin(*words, env=env), stdin)
    finally:
        await terminal.close()


async def lines_of(process: Process, count: int) -> list[str]:
    """The next so many lines of its standard output."""
    assert process.stdout is not None
    async with asyncio.timeout(SOON_S):
        return [(await process.stdout.readline()).decode() for _ in range(count)]


def interrupt(process: Process) -> None:
    """Ctrl-C."""
    process.send_signal(signal.SIGINT)


class Line:
    """A TCP relay to an API: to be cut, to lose answers, to be led to another API."""

    def __init__(self, url: str) -> None:
        self.leads_to = url
        self.url = ""
        self.lose_answers = 0
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Break whatever is open."""
        for writer in list(self._open):
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self.connections += 1
        target = urlsplit(self.leads_to)
        with suppress(ConnectionError):
            upstream_reader, upstream = await asyncio.open_connection(target.hostname, target.port)
            self._open |= {writer, upstream}
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._carry(reader, upstream))
                    both.create_task(self._carry_back(upstream_reader, writer))
            finally:
                self._open -= {writer, upstream}
                upstream.transport.abort()
        writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()

    async def _carry_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                if self.lose_answers:
                    self.lose_answers -= 1
                    break
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def line_to(url: str) -> AsyncGenerator[Line]:
    """A line to this API."""
    line = Line(url)
    listening = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        listening.close()
        line.cut()
        await listening.wait_closed()
