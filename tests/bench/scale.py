"""What a million tasks in the log cost those who poll, append and stream; what an attached task costs in memory."""

import asyncio
import random
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path

from msgspec import Struct

from app.commands import CreateTask, ReceiveInput
from app.metrics import Metrics
from app.tasks import Cause, Done, Tasks
from eventstore.connection import Connection, NatsAddress
from eventstore.events import TaskId
from eventstore.jetstream import JetStreamLog
from tests.bench.audit import QUIET, serving
from tests.bench.figures import Figure
from tests.bench.records import LIFE, OWNER, numbered
from tests.bench.views import filled
from tests.bench.wire import Client
from tests.projections.databases import Cluster

FEW = 1_000
ROUNDS = 5
AT_ONCE = 64
POLLS = 50 * AT_ONCE
TIMES = 100
"""How often each of what is measured by its time is done, in a round."""
ATTACHED = {"of one fact, just created": 100_000, f"of {len(LIFE)} facts, ended": 10_000}
CAUSE = Cause(actor="bench")


class Side(Struct):
    """An API process on a log, its client, and a room of ours on the same log."""

    client: Client
    url: str
    token: str
    room: Tasks
    unseen: Iterator[str]

    def some(self, count: int) -> list[str]:
        """The paths of tasks anywhere in the log; never the same twice, so they are not attached."""
        return list(islice(self.unseen, count))


async def scales(directory: Path, tasks: int, _: Cluster | None) -> list[Figure]:
    """The same at a small log and at a large one, in turn."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in MEASURES}
    figures: list[Figure] = []
    async with AsyncExitStack() as stack:
        logs = [
            await stack.enter_async_context(filled(directory / f"log-{count}", count, tasks_only=True))
            for count in (FEW, tasks)
        ]
        # Only now: a connection that is silent for five seconds is closed.
        sides = [await stack.enter_async_context(_side(nats, last)) for nats, last in logs]
        for _round in range(ROUNDS):
            for name, (_unit, measure) in MEASURES.items():
                for side, values in zip(sides, found[name], strict=True):
                    values.append(await measure(side))
    for name, (few, many) in found.items():
        unit, _measure = MEASURES[name]
        # A rate is better the other way round.
        ratios = [(one / other if unit.endswith("/s") else other / one) for one, other in zip(few, many, strict=True)]
        figures += [
            Figure(name=f"{name}, {FEW:,} tasks in the log", values=few, unit=unit),
            Figure(name=f"{name}, {tasks:,} tasks in the log", values=many, unit=unit),
            Figure(name=f"{name}, times slower", values=ratios, unit="x", share_of=f"{FEW:,}", aim=1.2, than="under"),
        ]
    return figures + await _memory(directory)


@asynccontextmanager
async def _side(nats: NatsAddress, tasks: int) -> AsyncGenerator[Side]:
    connection = await Connection.open(nats, "bench")
    log = await JetStreamLog.open(connection)
    room = await Tasks.open(log, Metrics("api"))
    async with serving(nats, "--reads", "bounded", *QUIET, scopes=("tasks:read", "tasks:write")) as (url, token):
        client = await Client.open(url, token)
        anywhere = random.Random(1).sample(range(tasks), FEW)
        yield Side(client, url, token, room, (f"/tasks/{numbered(number)}" for number in anywhere))
        client.close()
    await room.close()
    await log.close()
    await connection.close()


async def _hot(side: Side) -> float:
    """Polls a second of attached tasks, so many asked for at once."""
    paths = side.some(AT_ONCE)
    await side.client.get(*paths)
    since = time.perf_counter()
    for _ in range(POLLS // AT_ONCE):
        await side.client.get(*paths)
    assert len(paths) == AT_ONCE
    return POLLS / (time.perf_counter() - since)


async def _cold(side: Side) -> float:
    """A poll of a task that is not attached."""
    paths = iter(side.some(TIMES))
    return await _median_ms(lambda: side.client.get(next(paths)))


async def _create(side: Side) -> float:
    """A creation."""
    return await _median_ms(lambda: side.client.post("/tasks", {"input": "what is measured"}))


async def _stream(side: Side) -> float:
    """From the command to the frame, at a client of its own."""
    done = await side.room.create(OWNER, CreateTask(agent="simulator", fingerprint="f"), CAUSE)
    assert isinstance(done, Done)
    task_id = done.task.task_id
    listener = await Client.open(side.url, side.token)
    await listener.stream(f"/tasks/{task_id}/events")
    await listener.until(b"\n\n")
    numbers = iter(range(TIMES))
    median_ms = await _median_ms(lambda: _told(side, task_id, next(numbers), listener))
    listener.close()
    return median_ms


async def _told(side: Side, task_id: TaskId, number: int, listener: Client) -> None:
    said = asyncio.ensure_future(side.room.execute(OWNER, task_id, ReceiveInput(text=f"<{number}>"), CAUSE))
    await listener.until(f"<{number}>".encode())
    await said


async def _median_ms(once: Callable[[], Awaitable[object]]) -> float:
    took: list[float] = []
    for _ in range(TIMES):
        since = time.perf_counter()
        await once()
        took.append((time.perf_counter() - since) * 1000)
    return statistics.median(took)


MEASURES: dict[str, tuple[str, Callable[[Side], Awaitable[float]]]] = {
    "polls of attached tasks": ("polls/s", _hot),
    "a poll of a task that is not attached": ("ms", _cold),
    "POST /tasks": ("ms", _create),
    "fact appended to frame read": ("ms", _stream),
}


async def _memory(directory: Path) -> list[Figure]:
    """Of a process that has so many tasks attached."""
    figures: list[Figure] = []
    for number, (shape, count) in enumerate(ATTACHED.items()):
        records = FEW if number == 0 else count * len(LIFE)
        async with filled(directory / f"memory-{number}", records) as (nats, _last):
            words = (sys.executable, "-m", "tests.bench.attaching", nats.url, str(count), str(number))
            process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            said, _ = await process.communicate()
        before, after = map(float, said.split())
        figures += [
            Figure(name=f"{count:,} attached tasks {shape}", values=[after / 1024], unit="MiB"),
            Figure(name=f"an attached task {shape}", values=[(after - before) / count], unit="KiB"),
        ]
    return figures
