"""What only the log on JetStream can meet: a server that dies, stands still, is full, or has other writers."""

import asyncio
import random

import pytest

from eventstore.codec import recorded
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogFull, LogUnavailable, OutcomeUnknown, Recorded, WrongExpectedSequence
from eventstore.server import EmbeddedServer
from tests.log.logs import (
    ANN,
    SOON_S,
    Ear,
    created,
    grow,
    jetstream,
    new_task,
    record_of,
    said,
    stopped,
    until,
    write_against_others,
)


async def everything(log: JetStreamLog) -> list[Recorded]:
    """The whole log, as a tail replays it."""
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset, after=0)
    await tail.catch_up()
    await tail.close()
    return [recorded(one) for one in ear.arrivals]


async def test_a_read_that_the_server_dies_in_comes_whole(server: EmbeddedServer):
    async with jetstream(server.address) as log:
        task = new_task()
        history = await grow(log, task, 2000)
        reading = [asyncio.ensure_future(log.read(ANN, task)) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert not any(one.done() for one in reading)
        await server.kill()
        await server.restart()
        for whole in await asyncio.gather(*reading):
            assert [one.sequence for one in whole] == [one.sequence for one in history]


async def test_an_append_in_flight_when_the_server_dies_is_stored_once(server: EmbeddedServer):
    async with jetstream(server.address) as log:
        tasks = [new_task() for _ in range(200)]
        writing = [asyncio.ensure_future(grow(log, task, 10)) for task in tasks]
        await until(lambda: any(one.done() for one in writing) or log.connection.client.stats["in_msgs"] > 100)
        await server.kill()
        assert not any(one.done() for one in writing)
        await server.restart()
        histories = await asyncio.gather(*writing)
        stored = await everything(log)
        assert sorted(one.stored for history in histories for one in history) == sorted(one.stored for one in stored)
        assert len({one.record.record_id for one in stored}) == len(stored) == 2000


async def test_an_append_that_nobody_answers_is_of_unknown_outcome_and_known_when_repeated(server: EmbeddedServer):
    async with jetstream(server.address, patience_s=0.5) as log:
        task, record = new_task(), record_of(created())
        with stopped(server), pytest.raises(OutcomeUnknown):
            await log.append(ANN, task, record, 0)
        # It had been sent, and lands now; with it the attempts that were in the socket, which are refused.
        again = await log.append(ANN, task, record, 0)
        history = await log.read(ANN, task)
        assert [(one.sequence, one.stored) for one in history] == [(again.sequence, again.stored)]
        with pytest.raises(WrongExpectedSequence):
            await log.append(ANN, task, record_of(created("another")), 0)


async def test_what_was_never_sent_was_never_written(server: EmbeddedServer):
    async with jetstream(server.address, patience_s=0.3) as log:
        await server.kill()
        await until(lambda: not log.connection.connected)
        with pytest.raises(LogUnavailable):
            await log.append(ANN, new_task(), record_of(created()), 0)
        await server.restart()
        await until(lambda: log.connection.connected)
        (first,) = await grow(log, new_task(), 1)
        assert (first.sequence, await log.last_sequence()) == (1, 1)


async def test_an_append_that_begins_while_the_server_is_away_waits_for_it(server: EmbeddedServer):
    async with jetstream(server.address) as log:
        await server.kill()
        await until(lambda: not log.connection.connected)
        task = new_task()
        appending = asyncio.ensure_future(log.append(ANN, task, record_of(created()), 0))
        await server.restart()
        assert (await appending).sequence == await log.last(ANN, task) == 1


async def test_a_server_that_stays_away_is_said_to_be_unavailable(server: EmbeddedServer):
    async with jetstream(server.address) as log:
        (first,) = await grow(log, new_task(), 1)
        await server.kill()
        await until(lambda: not log.connection.connected)
        for question in (log.last(ANN, first.task_id), log.last_sequence(), log.blobs.get("name")):
            with pytest.raises(LogUnavailable):
                await question
        await server.restart()
        await until(lambda: log.connection.connected)
        assert await log.last(ANN, first.task_id) == 1


async def test_a_full_log_refuses_and_keeps_nothing_of_what_it_refused(nats_address: NatsAddress):
    async with jetstream(nats_address, max_bytes=64 * 1024) as log:
        ear = Ear()
        tail = await log.tail(ear.on_arrival, ear.on_reset)
        task = new_task()
        (last,) = await grow(log, task, 1)
        with pytest.raises(LogFull):  # noqa: PT012  # which of them it is that finds no room is not the point
            while True:
                last = await log.append(ANN, task, record_of(said("x" * 3000), last), last.sequence)
        other = new_task()
        for _ in range(20):
            with pytest.raises(LogFull):
                await log.append(ANN, other, record_of(created("y" * 20_000)), 0)
        assert (await log.last(ANN, task), await log.last_sequence()) == (last.sequence, last.sequence)
        assert (await log.last(ANN, other), await log.read(ANN, other)) == (0, [])
        await tail.catch_up()
        assert ear.sequences == [*range(1, last.sequence + 1)]
        await until(lambda: log.fullness > 0.9)
        # What is small enough still gets in, with nothing skipped.
        assert (await log.append(ANN, task, record_of(said("z"), last), last.sequence)).sequence == last.sequence + 1


async def test_a_log_that_is_opened_again_keeps_its_limit(nats_address: NatsAddress):
    async with jetstream(nats_address, max_bytes=64 * 1024) as first, jetstream(nats_address) as second:
        await second.tail(lambda _: None, lambda: None)
        await grow(first, new_task(), 20)
        await until(lambda: second.fullness > 0.05)


async def test_what_was_acknowledged_outlives_every_kill(server: EmbeddedServer):
    acknowledged: dict[TaskId, list[Recorded]] = {}
    ended = asyncio.Event()

    async def write(log: JetStreamLog, task: TaskId) -> None:
        history = acknowledged.setdefault(task, [])
        while not ended.is_set():
            after = history[-1] if history else None
            record = record_of(said() if after else created(), after)
            history.append(await log.append(ANN, task, record, after.sequence if after else 0))

    async with jetstream(server.address, patience_s=SOON_S) as log:
        async with asyncio.TaskGroup() as writers:
            for _ in range(10):
                writers.create_task(write(log, new_task()))
            for _ in range(5):
                await asyncio.sleep(random.uniform(0.05, 0.3))
                await server.kill()
                await server.restart()
            ended.set()
        for task, history in acknowledged.items():
            assert [one.stored for one in await log.read(ANN, task)] == [one.stored for one in history]
        stored = await everything(log)
    assert [one.sequence for one in stored] == [*range(1, len(stored) + 1)]
    assert len({one.record.record_id for one in stored}) == len(stored) == sum(map(len, acknowledged.values())) > 50


async def test_two_processes_write_one_log(nats_address: NatsAddress):
    async with jetstream(nats_address) as one, jetstream(nats_address) as other:
        ears = Ear(), Ear()
        tails = [await log.tail(ear.on_arrival, ear.on_reset) for log, ear in zip((one, other), ears, strict=True)]
        task = new_task()
        async with asyncio.TaskGroup() as writers:
            for n in range(20):
                writers.create_task(write_against_others((one, other)[n % 2], task, f"{n}"))
        for tail in tails:
            await tail.catch_up()
        assert [a.stored for a in ears[0].arrivals] == [a.stored for a in ears[1].arrivals]
        assert [r.record.version for r in await one.read(ANN, task)] == [*range(1, 21)]


async def test_a_tail_that_is_closed_is_forgotten_by_log_and_connection(server: EmbeddedServer):
    async with jetstream(server.address) as log:
        before = len(log.connection._on_reconnected)  # pyright: ignore[reportPrivateUsage]  # what would grow unseen
        for _ in range(5):
            ear = Ear()
            tail = await log.tail(ear.on_arrival, ear.on_reset, after=0)
            assert log._tails == [tail]  # pyright: ignore[reportPrivateUsage]  # the same
            await tail.close()
            await tail.close()
        assert log._tails == []  # pyright: ignore[reportPrivateUsage]  # the same
        assert len(log.connection._on_reconnected) == before  # pyright: ignore[reportPrivateUsage]  # the same
