"""The logs that the tests open, the records that they write, and an ear that remembers what a tail told it."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from uuid import uuid4

from eventstore.connection import Connection, NatsAddress
from eventstore.events import (
    Owner,
    PartialProduced,
    Record,
    SessionFact,
    SessionRecord,
    TaskCreated,
    TaskFact,
    TaskId,
    UnknownFact,
)
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.log import Arrival, EventLog, Recorded, SessionRecorded, WrongExpectedSequence
from eventstore.server import EmbeddedServer
from eventstore.stream import Stream
from eventstore.tail import StreamTail

ANN = Owner("ann")
AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOON_S = 20.0
"""What a test waits for at most: a bound for a machine that is busy with something else, not a promise."""
WHOLE_WITHIN_S = 5.0
"""A tail's bound after a fault; 2 s is the promise, and what it took is printed."""


def new_task() -> TaskId:
    return TaskId(f"task_{uuid4()}")


def record_of(fact: TaskFact | UnknownFact, after: Recorded | None = None) -> Record:
    """The record that says this fact, next after another."""
    return Record(
        record_id=uuid4().hex,
        version=after.record.version + 1 if after else 1,
        at=AT,
        actor="test",
        causation_id=None,
        correlation_id=None,
        previous=after.sha256 if after else "",
        fact=fact,
    )


def session_record_of(
    fact: SessionFact | UnknownFact, after: SessionRecorded | None = None, *, at: datetime = AT
) -> SessionRecord:
    """The record that says this fact of a session, next after another."""
    return SessionRecord(
        record_id=uuid4().hex,
        version=after.record.version + 1 if after else 1,
        at=at,
        actor="test",
        causation_id=None,
        correlation_id=None,
        previous=after.sha256 if after else "",
        fact=fact,
    )


def created(title: str = "a task") -> TaskCreated:
    return TaskCreated(agent="simulator", fingerprint="f", title=title)


def said(text: str = "a") -> PartialProduced:
    return PartialProduced(run=1, step=0, offset=0, text=text)


async def grow(log: EventLog, task: TaskId, by: int, after: Recorded | None = None) -> list[Recorded]:
    """Append so many records to a task, each acknowledged before the next."""
    grown: list[Recorded] = []
    for n in range(by):
        fact = said(str(n)) if after else created()
        after = await log.append(ANN, task, record_of(fact, after), after.sequence if after else 0)
        grown.append(after)
    return grown


async def write_against_others(log: EventLog, task: TaskId, text: str) -> Recorded:
    """Append one record to a task that others write too: on a conflict read on, decide again."""
    while True:
        history = await log.read(ANN, task)
        last = history[-1] if history else None
        try:
            return await log.append(ANN, task, record_of(said(text), last), last.sequence if last else 0)
        except WrongExpectedSequence:
            continue


@asynccontextmanager
async def jetstream(
    address: NatsAddress, *, max_bytes: int = -1, patience_s: float = 5.0, joins: bool = False
) -> AsyncGenerator[JetStreamLog]:
    """The log on a connection of its own."""
    connection = await Connection.open(address, "tests")
    try:
        log = await JetStreamLog.open(connection, max_bytes=max_bytes, patience_s=patience_s, joins=joins)
        try:
            yield log
        finally:
            await log.close()
    finally:
        await connection.close()


@asynccontextmanager
async def tail_of(log: JetStreamLog, ear: "Ear", *, after: int | None = None) -> AsyncGenerator[StreamTail]:
    """A tail of the log."""
    stream = Stream(log.connection, STREAM)
    await stream.open()
    try:
        tail = await StreamTail.open(log.connection, stream, ear.on_arrival, ear.on_reset, after=after)
        try:
            yield tail
        finally:
            await tail.close()
    finally:
        await stream.close()


@contextmanager
def stopped(server: EmbeddedServer) -> Generator[None]:
    """The server stands still, as a machine that swaps or is being moved."""
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        _until_stopped(pid)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _until_stopped(pid: int) -> None:
    """On a busy machine it may say one thing more before the signal takes hold."""
    state = Path(f"/proc/{pid}/stat")
    until = monotonic() + SOON_S
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "T":
        assert monotonic() < until
        sleep(0.001)


async def gone_back(server: EmbeddedServer, log: JetStreamLog, directory: Path, task: TaskId) -> list[Recorded]:
    """Ten records, a copy of the directory, ten more, the copy put back: the first ten. The server stays dead."""
    first = await grow(log, task, 10)
    store, copy = directory / "nats-data" / "nats", directory / "copy"
    await server.kill()
    shutil.copytree(store, copy)
    await server.restart()
    await grow(log, task, 10, first[-1])
    await log.last_sequence()
    await server.kill()
    shutil.rmtree(store)
    copy.rename(store)
    return first


async def until(condition: Callable[[], bool], within_s: float = SOON_S) -> float:
    """Seconds until the condition, which nothing announces, was true. Raises TimeoutError."""
    since = monotonic()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.005)
    return monotonic() - since


class Ear:
    """Remembers what it was told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.resets = 0
        self._told = asyncio.Event()

    def on_arrival(self, arrival: Arrival) -> None:
        self.arrivals.append(arrival)
        self._told.set()

    def on_reset(self) -> None:
        self.arrivals.clear()
        self.resets += 1
        self._told.set()

    @property
    def sequences(self) -> list[int]:
        return [arrival.sequence for arrival in self.arrivals]

    async def has(self, count: int, within_s: float = SOON_S) -> float:
        """Seconds until so many have come since the last reset. Raises TimeoutError."""
        since = monotonic()
        async with asyncio.timeout(within_s):
            while len(self.arrivals) < count:
                self._told.clear()
                await self._told.wait()
        return monotonic() - since
