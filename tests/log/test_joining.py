"""Appends that are joined into atomic batches: taken together or each by itself, but every one once."""

import asyncio
import random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore import joining
from eventstore.client import Delivery
from eventstore.connection import NatsAddress
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError, Recorded, WrongExpectedSequence
from eventstore.server import EmbeddedServer
from tests.log.logs import ANN, Ear, created, grow, jetstream, new_task, record_of, said, until
from tests.log.test_jetstream import everything

BATCH = b"Nats-Batch-Id: "


async def at_once(log: JetStreamLog, count: int) -> list[Recorded]:
    return await asyncio.gather(*(log.append(ANN, new_task(), record_of(created()), 0) for _ in range(count)))


async def test_what_comes_together_goes_together_and_is_read_as_if_it_had_come_alone(nats_address: NatsAddress):
    async with jetstream(nats_address, joins=True) as log:
        ear, batches = Ear(), list[bytes]()

        def hear(message: Delivery) -> None:
            batches.extend(line for line in (message.raw or b"").splitlines() if line.startswith(BATCH))

        tail = await log.tail(ear.on_arrival, ear.on_reset)
        await log.connection.take("tasks.>", hear)
        appended = await at_once(log, 300)
        await tail.catch_up()
        await until(lambda: len(batches) == 300)
    assert sorted(one.sequence for one in appended) == ear.sequences == [*range(1, 301)]
    assert {one.sequence: one.stored for one in appended} == {one.sequence: one.stored for one in ear.arrivals}
    assert len(set(batches)) == 1


async def test_few_go_each_by_itself(nats_address: NatsAddress):
    async with jetstream(nats_address, joins=True) as log:
        heard: list[Delivery] = []
        await log.connection.take("tasks.>", heard.append)
        await at_once(log, 3)
        await grow(log, new_task(), 5)
        await until(lambda: len(heard) == 8)
    assert not any(BATCH in (one.raw or b"") for one in heard)


async def test_one_that_is_in_conflict_costs_the_others_nothing(nats_address: NatsAddress):
    async with jetstream(nats_address, joins=True) as log:
        (first,) = await grow(log, new_task(), 1)
        losing = asyncio.ensure_future(log.append(ANN, first.task_id, record_of(created("another")), 0))
        others = await at_once(log, 50)
        (lost,) = await asyncio.gather(losing, return_exceptions=True)
        assert isinstance(lost, WrongExpectedSequence)
        assert (lost.expected, lost.found) == (0, first.sequence)
        stored = await everything(log)
    assert sorted(one.stored for one in stored) == sorted(one.stored for one in [first, *others])


async def test_a_stream_of_an_older_release_takes_batches_from_now_on(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        told = await log.connection.api("STREAM.INFO.TASKS")
        config = msgspec.convert(told["config"], dict[str, object])
        await log.connection.api("STREAM.UPDATE.TASKS", {**config, "allow_atomic": False})
        (first,) = await grow(log, new_task(), 1)
    async with jetstream(nats_address, joins=True) as log:
        heard: list[Delivery] = []
        await log.connection.take("tasks.>", heard.append)
        await at_once(log, 40)
        await until(lambda: len(heard) == 40)
        assert all(BATCH in (one.raw or b"") for one in heard)
        assert await log.last(ANN, first.task_id) == first.sequence


async def test_batches_that_the_server_dies_in_are_stored_once(server: EmbeddedServer):
    async with jetstream(server.address, patience_s=20.0, joins=True) as log:
        writing = [asyncio.ensure_future(grow(log, new_task(), 10)) for _ in range(200)]
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.0, 0.1))
            await server.kill()
            await server.restart()
        histories = await asyncio.gather(*writing)
        stored = await everything(log)
    assert sorted(one.stored for history in histories for one in history) == sorted(one.stored for one in stored)
    assert len({one.record.record_id for one in stored}) == len(stored) == 2000


async def test_a_connection_that_breaks_in_a_batch_doubles_nothing(server: EmbeddedServer):
    async with jetstream(server.address, joins=True) as log:
        for _ in range(5):
            writing = asyncio.ensure_future(at_once(log, 200))
            await asyncio.sleep(random.uniform(0.0, 0.02))
            log.connection._wire.close()  # pyright: ignore[reportPrivateUsage]  # as a network does it
            assert len(await writing) == 200
        stored = await everything(log)
    assert len({one.record.record_id for one in stored}) == len(stored) == 1000


writes = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["right", "wrong", "again"])), max_size=30)


@given(rounds=st.lists(writes, max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_joined_each_task_has_what_was_granted_and_nothing_else(
    nats_address: NatsAddress, rounds: list[list[tuple[int, str]]]
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joining, "FROM", 2)
        await write_joined(nats_address, rounds)


async def write_joined(nats_address: NatsAddress, rounds: list[list[tuple[int, str]]]) -> None:
    async with jetstream(nats_address, joins=True) as log:
        tasks = [new_task() for _ in range(5)]
        granted: dict[int, list[Recorded]] = {number: [] for number in range(5)}
        for some in rounds:
            after = {number: (history[-1] if history else None) for number, history in granted.items()}

            async def write(number: int, how: str, last: Recorded | None) -> tuple[int, Recorded | None]:
                record = record_of(said() if last else created(), last)
                expected = last.sequence if last else 0
                try:
                    if how == "again":  # the same bytes a second time: whoever repeats means the first
                        await log.append(ANN, tasks[number], record, expected)
                    wrong = 1 if how == "wrong" else 0
                    return number, await log.append(ANN, tasks[number], record, expected + wrong)
                except LogError:
                    return number, None

            for number, recorded in await asyncio.gather(*(write(n, how, after[n]) for n, how in some)):
                if recorded is not None:
                    # Two may be: who expected too much may have expected just what the other wrote.
                    granted[number] = sorted([*granted[number], recorded], key=lambda one: one.sequence)
        for number, history in granted.items():
            assert [one.stored for one in await log.read(ANN, tasks[number])] == [one.stored for one in history]
