"""Law 5: replay and live are one path. Whatever is cut, lost or evicted in between, a reader gets every fact exactly
once, in order, byte for byte as the log holds it, and an explicit end."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.tasks import Tasks
from eventstore.connection import NatsAddress, RefusedByServer
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.log import EventLog
from eventstore.memory import MemoryLog
from eventstore.server import EmbeddedServer
from tests.log.logs import ANN, SOON_S, jetstream, new_task
from tests.walk.lives import Reading, frames_of, live, lives, read_whole, readers, room

Trouble = Callable[[int], Awaitable[None]]

ONE_LOG_FOR_ALL = [HealthCheck.function_scoped_fixture]
"""Each example has a task of its own in the one log of its test."""


@pytest.fixture
async def jetstream_log(nats_address: NatsAddress) -> AsyncGenerator[JetStreamLog]:
    async with jetstream(nats_address) as log:
        yield log


@asynccontextmanager
async def rooms(log: EventLog) -> AsyncGenerator[list[Tasks]]:
    """Two, as two processes; the second keeps no task that nobody holds on to."""
    both = [await room(log), await room(log, strict_reads=True, max_attached=1)]
    try:
        yield both
    finally:
        for one in both:
            await one.close()


async def law_holds(
    log: EventLog, both: list[Tasks], life: list[int], all_readings: list[list[Reading]], trouble: Trouble
) -> None:
    """Write a life; many read it meanwhile, in both rooms; and then once more from its beginning."""
    task_id = new_task()

    async def read(tasks: Tasks, readings: list[Reading]) -> None:
        received = await read_whole(tasks, task_id, readings)
        assert received.frames == await frames_of(log, task_id)
        assert received.resets == 0

    async with asyncio.timeout(SOON_S):
        reading = [asyncio.ensure_future(read(both[n % 2], readings)) for n, readings in enumerate(all_readings)]
        await live(both, task_id, life, trouble)
        await asyncio.gather(*reading)
        for one in both:
            await read(one, [])
    for one in both:
        async with one.attach(ANN, task_id) as attached:
            assert (attached.readers, attached.pins) == (set(), 1)


def evicting(both: list[Tasks], odds: int) -> Trouble:
    """Attach another task now and then, so that what nobody holds on to has to leave."""

    async def trouble(n: int) -> None:
        if n % odds == 0:
            for one in both:
                async with one.attach(ANN, new_task()):
                    await asyncio.sleep(0)

    return trouble


@settings(max_examples=60, deadline=None)
@given(life=lives, all_readings=readers)
async def test_in_memory(life: list[int], all_readings: list[list[Reading]]):
    log = MemoryLog()
    async with rooms(log) as both:
        await law_holds(log, both, life, all_readings, evicting(both, 3))
    await log.close()


@settings(max_examples=15, deadline=None, suppress_health_check=ONE_LOG_FOR_ALL)
@given(life=lives, all_readings=readers, odds=st.integers(2, 6))
async def test_on_jetstream_with_the_tail_lost_in_between(
    jetstream_log: JetStreamLog, life: list[int], all_readings: list[list[Reading]], odds: int
):
    async with rooms(jetstream_log) as both:
        evict = evicting(both, 3)

        async def trouble(n: int) -> None:
            await evict(n)
            if n % odds == 0:
                await lie_to_tails(jetstream_log)

        await law_holds(jetstream_log, both, life, all_readings, trouble)


async def lie_to_tails(log: JetStreamLog) -> None:
    """Tell each tail, as the server would, that something it has not heard was sent: it believes nothing any more."""
    for consumer in await consumers(log):
        try:
            answer = await log.connection.api(f"CONSUMER.INFO.{STREAM}.{consumer}")
        except RefusedByServer:
            continue  # its tail has made another one meanwhile
        inbox = msgspec.convert(answer["config"], dict[str, object])["deliver_subject"]
        await log.connection.publish(str(inbox), headers={"Nats-Last-Consumer": "999999", "Nats-Last-Stream": "1"})


async def consumers(log: JetStreamLog) -> list[str]:
    names = (await log.connection.api(f"CONSUMER.NAMES.{STREAM}"))["consumers"]
    return msgspec.convert(names, list[str] | None) or []


LONG_LIFE = [2, 9, 10, 1, 9, 3, 0, 10, 2, 9, 10, 7, 3, 9, 10, 2, 1, 11, 4]
MANY_READERS = [
    [Reading(0, 3), Reading(5, 30, "sequence", dawdles=True)],
    [Reading(2, 7, room_bytes=3_000, dawdles=True), Reading(30, 1), Reading(40, 0)],
    [],
    [Reading(40, 200, room_bytes=3_000)],
]


@pytest.mark.parametrize("fault", ["kill", "delete"])
async def test_while_the_server_dies_or_forgets_its_consumers(server: EmbeddedServer, fault: str):
    said = 0

    async def trouble(n: int) -> None:
        nonlocal said
        said += 1
        if said not in (6, 14):
            return
        if fault == "kill":
            await server.kill()
            await server.restart()
        else:
            for consumer in await consumers(log):
                await log.connection.api(f"CONSUMER.DELETE.{STREAM}.{consumer}")

    async with jetstream(server.address) as log, rooms(log) as both:
        await law_holds(log, both, LONG_LIFE, MANY_READERS, trouble)
