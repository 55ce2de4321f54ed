"""Durability's price: bare appends by few and by many writers, by how often the server forces them to the disk; beside
what the disk itself takes, and atomic batches."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

from eventstore import codec
from eventstore.connection import Connection, NatsAddress
from eventstore.events import TaskId
from eventstore.jetstream import JetStreamLog
from eventstore.server import EmbeddedServer
from tests.bench.bare import Bare, one_by_one
from tests.bench.figures import Figure
from tests.bench.records import OWNER, arrivals
from tests.projections.databases import Cluster

INTERVALS = ("2m", "1s", "always")
WRITERS = (1, 16, 256)
ROUNDS = 3
SECONDS = 1.2
SYNCS = 200
BATCH = 100
PAYLOAD = b"x" * 400

Taken = dict[tuple[str, int], list[tuple[float, float]]]


async def durability(directory: Path, _records: int, _: Cluster | None) -> list[Figure]:
    """All of them in turn, again and again, each on a server of its own."""
    singles: Taken = {}
    batches: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        for interval in INTERVALS:
            server = await EmbeddedServer.start(directory / f"{number}-{interval}", sync_interval=interval)
            bare = await Bare.open(server.address)
            try:
                for writers in WRITERS:
                    singles.setdefault((interval, writers), []).append(await _written(partial(_bare, bare), writers))
                batches.setdefault(interval, []).append(await _batched(bare))
                if interval == "always":
                    await _joined(server.address, singles)
            finally:
                await bare.close()
                await server.stop()
    figures = [Figure(name="the disk: a write and its sync", values=[_synced_ms(directory)], unit="ms")]
    for (interval, writers), found in singles.items():
        name = f"{interval}, {writers} writer{'s' if writers > 1 else ''}"
        figures += [
            Figure(name=name, values=[rate for rate, _ in found], unit="appends/s"),
            Figure(name=f"{name}, p50", values=[p50_ms for _, p50_ms in found], unit="ms"),
        ]
    batched = f"atomic batches of {BATCH}, one after the other"
    return figures + [
        Figure(name=f"{interval}, {batched}", values=found, unit="appends/s") for interval, found in batches.items()
    ]


async def _bare(bare: Bare) -> None:
    await bare.by_inbox(f"bared.1.bench.{uuid4()}", PAYLOAD)


async def _joined(nats: NatsAddress, singles: Taken) -> None:
    """The log's own appends, which wait for each other."""
    connection = await Connection.open(nats, "bench")
    log = await JetStreamLog.open(connection, patience_s=30.0, joins=True)
    record = next(codec.recorded(one).record for one in arrivals(1))

    async def append() -> None:
        await log.append(OWNER, TaskId(f"task_{uuid4()}"), record, 0)

    for writers in WRITERS:
        singles.setdefault(("always, joined", writers), []).append(await _written(append, writers))
    await log.close()
    await connection.close()


async def _written(append: Callable[[], Awaitable[None]], writers: int) -> tuple[float, float]:
    """Appends a second by so many writers, and what half of them took at most, in milliseconds."""
    until = time.perf_counter() + SECONDS
    took_ms: list[float] = []

    async def write() -> None:
        while time.perf_counter() < until:
            took_ms.extend(await one_by_one([append]))

    since = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(writers)))
    rate = len(took_ms) / (time.perf_counter() - since)
    return rate, sorted(took_ms)[len(took_ms) // 2]


async def _batched(bare: Bare) -> float:
    """Appends a second in atomic batches."""
    since, count = time.perf_counter(), 0
    while time.perf_counter() - since < SECONDS:
        await bare.by_batch([(f"bared.1.bench.{uuid4()}", PAYLOAD) for _ in range(BATCH)])
        count += BATCH
    return count / (time.perf_counter() - since)


def _synced_ms(directory: Path) -> float:
    """What it takes to have a record's bytes on the disk, without any server."""
    with (directory / "synced").open("wb", buffering=0) as file:
        since = time.perf_counter()
        for _ in range(SYNCS):
            file.write(PAYLOAD)
            os.fdatasync(file.fileno())
        return (time.perf_counter() - since) / SYNCS * 1000
