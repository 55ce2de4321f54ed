"""The views: how fast they are rebuilt beside a bare reading of the same records; a page anywhere in a long list."""

import asyncio
import random
import shutil
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from nats.aio.client import Client

from eventstore.connection import Connection, NatsAddress
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.server import EmbeddedServer
from projections.database import Database
from projections.listing import cursor_of
from projections.views import Views
from tests.bench.figures import Figure
from tests.bench.records import LIFE, OWNER, fill
from tests.projections.databases import Cluster

A_LONG_LOG = 500_000
"""From here on one round has to do: all of it stays under ten minutes."""
PAGES = 200
PAGE = 20


@asynccontextmanager
async def filled(directory: Path, records: int, *, tasks_only: bool = False) -> AsyncGenerator[tuple[NatsAddress, int]]:
    """A nats-server whose log, in this directory, holds so many records, and its last sequence."""
    await fill_directory(directory, records, tasks_only=tasks_only)
    server = await EmbeddedServer.start(directory)
    try:
        async with _log_at(server) as log:
            last = await log.last_sequence()
        yield server.address, last
    finally:
        await server.stop()


async def fill_directory(directory: Path, records: int, *, tasks_only: bool = False) -> None:
    """A data directory whose log holds so many records: a copy of one that is kept until all benches are done, beside
    their directories, for a large one takes as long to write as to measure."""
    kept = directory.parent.parent / f"kept-{records}-{'tasks' if tasks_only else 'facts'}"
    if not kept.exists():
        making = kept.with_suffix(".made")
        server = await EmbeddedServer.start(making)
        try:
            async with _log_at(server) as log:
                await fill(log, records, LIFE[:1] if tasks_only else LIFE)
        finally:
            await server.stop()
        making.rename(kept)
    await asyncio.to_thread(shutil.copytree, kept, directory)


@asynccontextmanager
async def _log_at(server: EmbeddedServer) -> AsyncGenerator[JetStreamLog]:
    connection = await Connection.open(server.address, "bench")
    log = await JetStreamLog.open(connection)
    try:
        yield log
    finally:
        await log.close()
        await connection.close()


def rounds(records: int) -> int:
    """How often each is measured."""
    return 3 if records < A_LONG_LOG else 1


async def bare_reading(nats: NatsAddress, records: int) -> float:
    """Records a second through nats-py's own ordered consumer with a callback that only counts."""
    client = Client()
    await client.connect(servers=[nats.url])
    done = asyncio.Event()
    seen = 0

    async def count(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == records:
            done.set()

    since = time.monotonic()
    consumer = await client.jetstream().subscribe(  # pyright: ignore[reportUnknownMemberType]  # nats-py
        ">", stream=STREAM, cb=count, ordered_consumer=True, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    await done.wait()
    rate = records / (time.monotonic() - since)
    with suppress(Exception):
        await consumer.unsubscribe()
    await client.close()
    return rate


async def rebuilt(nats: NatsAddress, views_url: str, records: int) -> tuple[float, float]:
    """Records a second, and the peak of its memory in MiB."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.rebuild", nats.url, views_url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    seconds, peak = map(float, said.split())
    return records / seconds, peak


async def rebuilds(directory: Path, records: int, postgresql: Cluster | None) -> list[Figure]:
    """On both databases, in turn with bare readings."""
    bare: list[float] = []
    rates: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    async with filled(directory / "log", records) as (nats, last):
        for number in range(rounds(records)):
            bare.append(await bare_reading(nats, last))
            for kind, url in _databases(directory, number, postgresql).items():
                rate, peak = await rebuilt(nats, url, last)
                rates.setdefault(kind, []).append(rate)
                peaks.setdefault(kind, []).append(peak)
    figures = [Figure(name=f"bare ordered reading, {last:,} records", values=bare, unit="records/s")]
    for kind, aim in (("SQLite", 0.3), ("PostgreSQL", 0.2)):
        if kind not in rates:
            continue
        shares = [rate / one for rate, one in zip(rates[kind], bare, strict=True)]
        figures += [
            Figure(name=f"rebuild on {kind}", values=rates[kind], unit="records/s"),
            Figure(name=f"rebuild on {kind}, share", values=shares, unit="", share_of="bare reading", aim=aim),
            Figure(name=f"rebuild on {kind}, peak", values=peaks[kind], unit="MiB", aim=300, than="under"),
        ]
    return figures


def _databases(directory: Path, number: int, postgresql: Cluster | None) -> dict[str, str]:
    found = {"SQLite": f"sqlite:///{directory / f'views-{number}.sqlite'}"}
    return found if postgresql is None else found | {"PostgreSQL": postgresql.new_database()}


async def pages(directory: Path, tasks: int, postgresql: Cluster | None) -> list[Figure]:
    """Of a list of so many tasks, at random places."""
    figures: list[Figure] = []
    async with filled(directory / "list", tasks, tasks_only=True) as (nats, last):
        # A long list takes PostgreSQL longer to take in than a bench may last; a shorter one shows the same.
        for kind, url in _databases(directory, 99, postgresql if tasks < A_LONG_LOG else None).items():
            rate, _ = await rebuilt(nats, url, last)
            database = Database.open(url)
            views = Views(database)
            places = [random.Random(1).randrange(1, last) for _ in range(PAGES)]
            took_ms: list[float] = []
            for place in places:
                since = time.monotonic()
                page = await views.list(OWNER, after=cursor_of(place), limit=PAGE)
                took_ms.append((time.monotonic() - since) * 1000)
                assert len(page.tasks) == min(PAGE, place - 1)
            await database.close()
            figures += [
                Figure(name=f"{kind}: {last:,} tasks taken in", values=[rate], unit="tasks/s"),
                Figure(name=f"{kind}: a page of {PAGE} anywhere", values=took_ms, unit="ms", aim=10, than="under"),
            ]
    return figures
