"""The log from a sequence on, at the pace of its taker: one suite for both logs, then the faults of a real server."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from eventstore import flow
from eventstore.events import Owner
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.log import Arrival, BadSubject, EventLog, LogIsAnother, Replay, task_subject
from eventstore.replay import StreamReplay
from eventstore.server import EmbeddedServer
from tests.log.logs import ANN, SOON_S, created, gone_back, grow, jetstream, new_task, record_of, stopped

BOB = Owner("bob")


@asynccontextmanager
async def replay_of(log: EventLog, *, after: int = 0, owner: Owner | None = None) -> AsyncGenerator[Replay]:
    replay = await log.replay(after=after, owner=owner)
    try:
        yield replay
    finally:
        await replay.close()


@asynccontextmanager
async def stream_replay_of(log: JetStreamLog) -> AsyncGenerator[StreamReplay]:
    replay = await log.replay(after=0)
    try:
        yield replay
    finally:
        await replay.close()


async def taken_up_to(replay: Replay, sequence: int, *, at_a_time: int = 1000) -> list[Arrival]:
    """All up to there. Raises TimeoutError."""
    taken: list[Arrival] = []
    async with asyncio.timeout(SOON_S):
        while replay.position < sequence:
            taken += await replay.take(at_a_time, within_s=0.5)
    return taken


async def filled(log: EventLog, count: int, title: str = "a task") -> int:
    """So many tasks, each of one record; the last sequence."""
    written = await asyncio.gather(
        *[log.append(ANN, new_task(), record_of(created(title)), 0) for _ in range(count)],
    )
    return max(one.sequence for one in written)


async def test_all_that_is_there_comes_then_what_is_written(log: EventLog):
    task = new_task()
    first = await grow(log, task, 10)
    async with replay_of(log) as replay:
        assert [one.stored for one in await taken_up_to(replay, 10, at_a_time=3)] == [one.stored for one in first]
        taking = asyncio.ensure_future(replay.take(5, within_s=SOON_S))
        (more,) = await grow(log, task, 1, first[-1])
        (arrival,) = await taking
        assert (arrival.sequence, arrival.subject, arrival.stored) == (11, task_subject(ANN, task), more.stored)
        assert (replay.position, replay.lag) == (11, 0)


async def test_it_begins_after_its_sequence(log: EventLog):
    await grow(log, new_task(), 10)
    async with replay_of(log, after=7) as replay:
        assert [one.sequence for one in await taken_up_to(replay, 10)] == [8, 9, 10]


async def test_where_nothing_comes_nothing_is_taken(log: EventLog):
    async with replay_of(log) as replay:
        assert await replay.take(10, within_s=0.05) == []


async def test_a_batch_that_is_not_full_waits_for_more(log: EventLog):
    task = new_task()
    first = await grow(log, task, 1)
    async with replay_of(log) as replay:
        taking = asyncio.ensure_future(replay.take(2, within_s=SOON_S, linger_s=SOON_S))
        await grow(log, task, 1, first[0])
        assert [one.sequence for one in await taking] == [1, 2]


async def test_one_owners_records_come_and_the_position_passes_the_others(log: EventLog):
    task = new_task()
    await grow(log, new_task(), 3)
    bobs = await log.append(BOB, task, record_of(created()), 0)
    await grow(log, new_task(), 3)
    async with replay_of(log, owner=BOB) as replay:
        assert [one.stored for one in await taken_up_to(replay, 7)] == [bobs.stored]


async def test_an_owner_that_is_a_pattern_is_refused(log: EventLog):
    with pytest.raises(BadSubject):
        await log.replay(after=0, owner=Owner("*"))


@pytest.fixture
async def stream_log(server: EmbeddedServer) -> AsyncGenerator[JetStreamLog]:
    async with jetstream(server.address) as log:
        yield log


async def most_held(replay: StreamReplay, last: int, *, at_a_time: int, pause_s: float) -> int:
    """What waited at most, while all was taken so slowly."""
    taken: list[Arrival] = []
    most = 0
    while replay.position < last:
        taken += await replay.take(at_a_time, within_s=1.0)
        await asyncio.sleep(pause_s)
        most = max(most, replay.held)
    assert [one.sequence for one in taken] == [*range(1, last + 1)]
    return most


async def test_a_slow_taker_holds_little_in_memory_and_misses_nothing(
    stream_log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flow, "AT_ONCE", 100)
    monkeypatch.setattr("eventstore.replay.LEAST", 50)
    last = await filled(stream_log, 2_000)
    async with stream_replay_of(stream_log) as replay:
        most = await most_held(replay, last, at_a_time=7, pause_s=0)
    assert most <= 50 + 2 * 100


async def test_a_slow_taker_of_large_records_holds_few_of_them(
    stream_log: JetStreamLog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(flow, "AT_ONCE_BYTES", 1024 * 1024)
    monkeypatch.setattr("eventstore.replay.LEAST_BYTES", 1024 * 1024)
    last = await filled(stream_log, 100, "x" * 200_000)
    async with stream_replay_of(stream_log) as replay:
        most = await most_held(replay, last, at_a_time=1, pause_s=0.002)
    assert most <= 3 * 1024 * 1024 // 200_000 + 1


async def test_how_many_are_still_to_be_taken_is_known_from_the_beginning(stream_log: JetStreamLog):
    await filled(stream_log, 3)
    async with stream_replay_of(stream_log) as replay:
        assert replay.lag == 3
        assert len(await replay.take(3, within_s=SOON_S, linger_s=SOON_S)) == 3
        assert replay.lag == 0
    nobodys = await stream_log.replay(after=0, owner=BOB)
    assert nobodys.lag == 0
    await nobodys.close()


async def test_large_records_are_asked_for_by_their_bytes(stream_log: JetStreamLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flow, "AT_ONCE_BYTES", 1024 * 1024)
    last = await filled(stream_log, 60, "x" * 200_000)
    async with stream_replay_of(stream_log) as replay:
        assert [one.sequence for one in await taken_up_to(replay, last)] == [*range(1, last + 1)]
        assert replay.tail.recreations == 0  # a request's end is no fault


async def test_requests_whose_time_is_over_are_made_again(stream_log: JetStreamLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(flow, "ASKED_FOR_S", 1.0)
    async with stream_replay_of(stream_log) as replay:
        assert await replay.take(1, within_s=1.2) == []
        last = await filled(stream_log, 3)
        assert len(await taken_up_to(replay, last)) == 3
        assert replay.tail.recreations == 0  # a request's end is no fault


async def test_the_server_dies_in_the_middle(server: EmbeddedServer, stream_log: JetStreamLog):
    last = await filled(stream_log, 10_000)
    async with stream_replay_of(stream_log) as replay:
        taken = await replay.take(500, within_s=SOON_S)
        await server.kill()
        await server.restart()
        taken += await taken_up_to(replay, last)
    assert [one.sequence for one in taken] == [*range(1, last + 1)]


async def test_the_server_stands_still_in_the_middle(server: EmbeddedServer, stream_log: JetStreamLog):
    last = await filled(stream_log, 10_000)
    async with stream_replay_of(stream_log) as replay:
        taken = await replay.take(500, within_s=SOON_S)
        with stopped(server):
            taken += await replay.take(10_000, within_s=1.5, linger_s=1.5)
        taken += await taken_up_to(replay, last)
    assert [one.sequence for one in taken] == [*range(1, last + 1)]


async def test_a_taker_that_paused_until_its_consumer_was_gone_goes_on(stream_log: JetStreamLog):
    last = await filled(stream_log, 10_000)
    async with stream_replay_of(stream_log) as replay:
        taken = await replay.take(1, within_s=SOON_S)
        consumers = await stream_log.connection.api(f"CONSUMER.NAMES.{STREAM}")
        (consumer,) = msgspec.convert(consumers["consumers"], list[str])
        await stream_log.connection.api(f"CONSUMER.DELETE.{STREAM}.{consumer}")
        taken += await taken_up_to(replay, last)
    assert [one.sequence for one in taken] == [*range(1, last + 1)]


async def test_a_log_that_went_back_is_another_one(server: EmbeddedServer, stream_log: JetStreamLog, tmp_path: Path):
    task = new_task()
    async with stream_replay_of(stream_log) as replay:
        await gone_back(server, stream_log, tmp_path, task)
        await taken_up_to(replay, 20)
        await server.restart()
        with pytest.raises(LogIsAnother):
            await replay.take(1, within_s=SOON_S)
