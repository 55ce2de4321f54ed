"""The append: creations beside bare appends of the same bytes, alone and many at once; what decide and evolve take."""

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, reduce
from pathlib import Path
from uuid import uuid4

from app.commands import Command, CreateTask, ProducePartial, ReceiveInput
from app.decide import Rejected, decide
from app.metrics import Metrics
from app.tasks import Cause, Done, Tasks
from eventstore.codec import recorded
from eventstore.connection import Connection, NatsAddress
from eventstore.jetstream import JetStreamLog
from eventstore.server import EmbeddedServer
from projections.task import INITIAL, Task, evolve
from tests.bench.bare import Bare, one_by_one, pipelined
from tests.bench.creations import creations
from tests.bench.figures import Figure
from tests.bench.records import LIFE, OWNER, arrivals
from tests.projections.databases import Cluster

ROUNDS = 5
IN_FLIGHT = 256
APPENDS = 15_000
REQUESTS = 5_000
"""nats-py's own way is slower: fewer of them say as much."""
ALONE = 1_000
CALLS = 20_000

CREATE = CreateTask(
    agent="simulator", fingerprint="f" * 64, title="A brief", input={"text": "What do the tides do?"}, metadata={"a": 1}
)
PARTIAL = ProducePartial(run=1, step=1, offset=27, text="The tides follow the moon. ")
CAUSE = Cause(actor="bench/0123456789ab", causation_id="req_1", correlation_id="req_1")

Appends = list[tuple[str, bytes]]


async def appends(directory: Path, _records: int, _: Cluster | None) -> list[Figure]:
    """All of it: in this process, then over HTTP."""
    server = await EmbeddedServer.start(directory / "log")
    try:
        return [*_pure(), *await _in_process(server.address), *await creations(server.address)]
    finally:
        await server.stop()


async def _in_process(nats: NatsAddress) -> list[Figure]:
    connection = await Connection.open(nats, "bench")
    log = await JetStreamLog.open(connection)
    tasks = await Tasks.open(log, Metrics())
    bare = await Bare.open(nats)
    try:
        return [*await _many(tasks, bare), *await _alone(tasks, bare)]
    finally:
        await bare.close()
        await tasks.close()
        await log.close()
        await connection.close()


async def _many(tasks: Tasks, bare: Bare) -> list[Figure]:
    """As many as come at once."""
    ours: list[float] = []
    inbox: list[float] = []
    request: list[float] = []
    for _ in range(ROUNDS):
        rate, written = await _created(tasks, APPENDS)
        ours.append(rate)
        inbox.append(await pipelined(_appended(bare.by_inbox, written), IN_FLIGHT))
        request.append(await pipelined(_appended(bare.by_request, written[:REQUESTS]), IN_FLIGHT))
    of_inbox = [one / other for one, other in zip(ours, inbox, strict=True)]
    of_request = [one / other for one, other in zip(ours, request, strict=True)]
    return [
        Figure(name=f"creations, {IN_FLIGHT} in flight", values=ours, unit="appends/s"),
        Figure(name="bare appends, an inbox of our own", values=inbox, unit="appends/s"),
        Figure(name="bare appends, nats-py's request", values=request, unit="appends/s"),
        Figure(name="creations, share", values=of_inbox, unit="", share_of="bare, an inbox of our own", aim=0.5),
        Figure(name="creations, share", values=of_request, unit="", share_of="bare, nats-py's request"),
    ]


async def _alone(tasks: Tasks, bare: Bare) -> list[Figure]:
    """One after the other."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for _ in range(ROUNDS):
        _, written = await _created(tasks, 1)
        written = _others(written * ALONE)
        made = await tasks.create(OWNER, CREATE, CAUSE)
        assert isinstance(made, Done)
        works = {
            "a bare append": _appended(bare.by_inbox, written),
            "a creation": [partial(tasks.create, OWNER, CREATE, CAUSE)] * ALONE,
            "a command": [partial(tasks.execute, OWNER, made.task.task_id, ReceiveInput(text="more"), CAUSE)] * ALONE,
        }
        for name, some in works.items():
            took_ms = await one_by_one(some)
            p50s, p99s = found.setdefault(name, ([], []))
            p50s.append(took_ms[len(took_ms) // 2])
            p99s.append(took_ms[len(took_ms) * 99 // 100])
    figures: list[Figure] = []
    for name, (p50s, p99s) in found.items():
        figures += [
            Figure(name=f"{name}, awaited, p50", values=p50s, unit="ms"),
            Figure(name=f"{name}, awaited, p99", values=p99s, unit="ms"),
        ]
    return figures


async def _created(tasks: Tasks, count: int) -> tuple[float, Appends]:
    """Creations a second, and what they wrote, for others to write it too."""
    written: Appends = []

    async def create() -> None:
        done = await tasks.create(OWNER, CREATE, CAUSE)
        assert isinstance(done, Done)
        assert done.recorded is not None
        written.append((done.task.task_id, done.recorded.stored))

    rate = await pipelined([create] * count, IN_FLIGHT)
    return rate, _others(written)


def _others(written: Appends) -> Appends:
    """The same bytes, for subjects of their own, as long as a task's."""
    return [(f"bared.{number % 10}.{OWNER}.task_{uuid4()}", stored) for number, (_, stored) in enumerate(written)]


def _appended(
    append: Callable[[str, bytes], Awaitable[None]], written: Appends
) -> Sequence[Callable[[], Awaitable[object]]]:
    return [partial(append, *one) for one in _others(written)]


def _pure() -> list[Figure]:
    """What deciding and folding take, by themselves."""
    facts = [recorded(one) for one in arrivals(100 * len(LIFE))][::100]
    running = reduce(evolve, facts[:5], INITIAL)
    lives = CALLS // len(facts)
    folded = [_took_us(lambda: reduce(evolve, facts, INITIAL), lives) / len(facts) for _ in range(ROUNDS)]
    return [
        _decided("decide: a creation", CREATE, INITIAL),
        _decided("decide: a partial", PARTIAL, running),
        Figure(name="evolve, a record of a life", values=folded, unit="us"),
    ]


def _decided(name: str, command: Command, task: Task) -> Figure:
    decision = decide(command, task)
    assert decision is not None
    assert not isinstance(decision, Rejected), decision
    return Figure(name=name, values=[_took_us(lambda: decide(command, task), CALLS) for _ in range(ROUNDS)], unit="us")


def _took_us(call: Callable[[], object], times: int) -> float:
    since = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - since) / times * 1e6
