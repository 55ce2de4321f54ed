"""How soon `tasktrail serve` answers with a long log, and how fast that is folded."""

import asyncio
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from app.supervisor import VIEWS_FILE
from eventstore.connection import Connection, NatsAddress
from eventstore.server import EmbeddedServer
from eventstore.tokens import Tokens, new_token
from tests.bench.audit import QUIET
from tests.bench.figures import Figure
from tests.bench.records import LIFE, OWNER, numbered
from tests.bench.views import bare_reading, fill_directory, filled, rebuilt, rounds
from tests.bench.wire import Client
from tests.projections.databases import Cluster
from tests.walk.serving import free_port

ROUNDS = 2
AGAIN_S = 0.002
KINDS = (
    "no views yet, after a clean stop",
    "no views yet, after SIGKILL",
    "views there, after a clean stop",
    "views there, after SIGKILL",
)
COLD, COLD_KILLED, BUILT, BUILT_KILLED = KINDS


class Site:
    """A data directory with a long log, whose service is started again and again."""

    def __init__(self, directory: Path, token: str, path: str) -> None:
        self._directory = directory
        self._token = token
        self._path = path
        self._process: Process | None = None
        self._url = f"http://127.0.0.1:{free_port()}"

    @classmethod
    async def made(cls, directory: Path, records: int) -> "Site":
        """With so many records, a token, and a task in their middle that is asked for."""
        await fill_directory(directory, records)
        server = await EmbeddedServer.start(directory)
        connection = await Connection.open(server.address, "bench")
        tokens = await Tokens.open(connection)
        await tokens.add(token := new_token(), OWNER, ("tasks:read",))
        await tokens.close()
        await connection.close()
        await server.stop()
        return cls(directory, token, f"/tasks/{numbered(records // len(LIFE) // 2)}")

    async def start(self) -> float:
        """Seconds to the first answer about a task."""
        port = self._url.rpartition(":")[2]
        words = (sys.executable, "-m", "app", "serve", "--data-dir", str(self._directory), "--port", port, *QUIET)
        since = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(*words, stdout=DEVNULL)
        while not await self._answers():  # noqa: ASYNC110  # another process's start
            await asyncio.sleep(AGAIN_S)
        return time.monotonic() - since

    async def build_views(self, records: int) -> None:
        """As a projector that has the machine for itself does it."""
        server = await EmbeddedServer.start(self._directory)
        try:
            await rebuilt(server.address, f"sqlite:///{self._directory / VIEWS_FILE}", records)
        finally:
            await server.stop()

    async def end(self, number: signal.Signals) -> None:
        """Stop it, or kill it, and have nobody left of it who could answer."""
        if self._process is not None:
            self._process.send_signal(number)
            await self._process.wait()
            self._process = None
            while await self._answers():  # noqa: ASYNC110  # its children die a moment after it
                await asyncio.sleep(AGAIN_S)

    async def _answers(self) -> bool:
        """Whether somebody tells about the task."""
        try:
            client = await Client.open(self._url, self._token)
        except OSError:
            return False
        try:
            await client.get(self._path)
        except (OSError, asyncio.IncompleteReadError):
            return False
        finally:
            client.close()
        return True

    def without_views(self) -> None:
        """Nothing was built."""
        for one in self._directory.glob(f"{VIEWS_FILE}*"):
            one.unlink()


async def starts(directory: Path, records: int, _: Cluster | None) -> list[Figure]:
    """With views and without, after a clean stop and after SIGKILL; then the replays."""
    took: dict[str, list[float]] = {kind: [] for kind in KINDS}
    site = await Site.made(directory / "site", records)
    try:
        for _round in range(ROUNDS):
            await site.end(signal.SIGTERM)
            site.without_views()
            took[COLD].append(await site.start())
            await site.end(signal.SIGKILL)
            site.without_views()
            took[COLD_KILLED].append(await site.start())
        await site.end(signal.SIGTERM)
        site.without_views()
        await site.build_views(records)
        for _round in range(ROUNDS):
            await site.end(signal.SIGTERM)
            took[BUILT].append(await site.start())
            await site.end(signal.SIGKILL)
            took[BUILT_KILLED].append(await site.start())
    finally:
        await site.end(signal.SIGTERM)
    figures = [
        Figure(name=f"start to first answer, {kind}", values=found, unit="s", aim=3, than="under")
        for kind, found in took.items()
    ]
    return figures + await _replays(directory, records)


async def _replays(directory: Path, records: int) -> list[Figure]:
    """Through the fold, in turn with bare readings."""
    bare: list[float] = []
    rates: list[float] = []
    async with filled(directory / "log", records) as (nats, last):
        for _round in range(rounds(records)):
            bare.append(await bare_reading(nats, last))
            rates.append(last / await _folded(nats))
    shares = [rate / one for rate, one in zip(rates, bare, strict=True)]
    return [
        Figure(name=f"bare ordered reading, {last:,} records", values=bare, unit="records/s"),
        Figure(name="replay through the fold", values=rates, unit="records/s"),
        Figure(name="replay through the fold, share", values=shares, unit="", share_of="bare reading", aim=0.5),
    ]


async def _folded(nats: NatsAddress) -> float:
    """Seconds."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.folding", nats.url), stdout=PIPE
    )
    said, _ = await process.communicate()
    return float(said)
