"""Each append that was begun is told how it ended: once, whatever comes between."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from eventstore import codec, joining
from eventstore.appender import WINDOW, Appender
from eventstore.client import Delivery
from eventstore.connection import NatsAddress
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.joining import JoiningAppender
from eventstore.log import Arrival, LogError, LogFull, OutcomeUnknown, Recorded, task_subject
from eventstore.server import EmbeddedServer
from eventstore.stream import Stream
from tests.log.logs import ANN, created, grow, jetstream, new_task, record_of, said, stopped, until
from tests.log.test_jetstream import everything

End = Recorded | LogError


@pytest.fixture(params=[Appender, JoiningAppender])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Appender]:
    """Each by itself, and joined from two on."""
    monkeypatch.setattr(joining, "FROM", 2)
    return request.param


def appender_of(log: JetStreamLog) -> Appender:
    return log._appender  # pyright: ignore[reportPrivateUsage]  # to be met at its worst moments


def begin(log: JetStreamLog, ends: dict[str, list[End]], title: str = "a task") -> str:
    """Begin to create a task; how that ends is found in `ends`."""
    record = record_of(created(title))
    told = ends.setdefault(record.record_id, [])
    assert log.begin(ANN, new_task(), record, 0, told.append)
    return record.record_id


def all_told(ends: dict[str, list[End]]) -> bool:
    return all(ends.values())


async def check(log: JetStreamLog, ends: dict[str, list[End]]) -> None:
    """Told once each; what was told as done is there, as it was told; nothing is there twice."""
    await until(lambda: all_told(ends))
    stored = {one.record.record_id: one for one in await everything(log)}
    assert await log.last_sequence() == len(stored)
    for record_id, told in ends.items():
        (end,) = told
        if isinstance(end, Recorded):
            there = stored[record_id]
            assert (there.sequence, there.stored) == (end.sequence, end.stored)
            assert there.record == end.record


async def test_those_in_flight_at_the_close_are_told_though_what_sees_to_them_never_began(
    nats_address: NatsAddress, kind: type[Appender]
):
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address, joins=kind is JoiningAppender) as log:
        for _ in range(50):
            begin(log, ends)
        appender_of(log)._wake()  # pyright: ignore[reportPrivateUsage]  # the connection came back just now
        for _ in range(50):
            begin(log, ends)
    assert {type(told[0]) for told in ends.values()} <= {OutcomeUnknown, Recorded}
    assert [len(told) for told in ends.values()] == [1] * 100


async def test_what_is_begun_when_all_is_closed_is_not_begun(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        await appender_of(log).close()
        assert not log.begin(ANN, new_task(), record_of(created()), 0, lambda _: None)


async def test_an_acknowledgement_that_comes_while_the_append_is_seen_to_counts_once(
    nats_address: NatsAddress, kind: type[Appender]
):
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address, joins=kind is JoiningAppender) as log:
        for _ in range(30):
            for _ in range(10):
                begin(log, ends)
            for _ in range(random.randrange(12)):
                await asyncio.sleep(0)
            appender_of(log)._wake()  # pyright: ignore[reportPrivateUsage]  # as after a reconnect, but nothing was lost
        await check(log, ends)
        assert all(isinstance(told[0], Recorded) for told in ends.values())


@pytest.mark.parametrize("nonsense", [b"{}", b"", b"\xff", b'{"stream":"TASKS","seq":0}', b'{"seq":"7"}', b"[]"])
async def test_an_answer_that_says_nothing_acknowledges_nothing(nats_address: NatsAddress, nonsense: bytes):
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address) as log:
        await grow(log, new_task(), 1)
        begin(log, ends)
        (flight,) = appender_of(log)._flights.values()  # pyright: ignore[reportPrivateUsage]  # answered by somebody
        flight(Delivery("", "", nonsense))
        assert not all_told(ends)
        await check(log, ends)
        assert [told[0].sequence for told in ends.values() if isinstance(told[0], Recorded)] == [2]


async def test_whoever_can_not_take_how_it_ended_costs_the_others_nothing(
    nats_address: NatsAddress, kind: type[Appender]
):
    ends: dict[str, list[End]] = {}

    def fail(end: End) -> None:
        raise ValueError(end)

    async with jetstream(nats_address, joins=kind is JoiningAppender) as log:
        for _ in range(20):
            assert log.begin(ANN, new_task(), record_of(created()), 0, fail)
            begin(log, ends)
        await until(lambda: all_told(ends))
        for _ in range(20):
            assert log.begin(ANN, new_task(), record_of(created()), 0, fail)
            begin(log, ends)
    assert [len(told) for told in ends.values()] == [1] * 40


class Unwell(Stream):
    """A stream of which something unheard of comes when it is asked."""

    async def get(self, **_: object) -> Arrival | None:
        raise ZeroDivisionError


@asynccontextmanager
async def on_an_unwell_stream(log: JetStreamLog) -> AsyncGenerator[Appender]:
    stream = Unwell(log.connection, STREAM)
    await stream.open()
    appender = Appender(log.connection, stream, patience_s=5.0)
    yield appender
    await appender.close()
    await stream.close()


async def test_a_fault_of_ours_leaves_nobody_waiting(nats_address: NatsAddress):
    ends: list[int | LogError] = []
    async with jetstream(nats_address) as log, on_an_unwell_stream(log) as appender:
        (first,) = await grow(log, new_task(), 1)
        record = record_of(created("another"))
        subject = task_subject(ANN, first.task_id)
        assert appender.begin(subject, record.record_id, codec.encode(record), 0, ends.append)
        await until(lambda: bool(ends))
    assert [type(end) for end in ends] == [OutcomeUnknown]


async def test_as_many_are_in_flight_as_there_is_room_for_and_those_who_wait_have_their_turn(server: EmbeddedServer):
    ends: dict[str, list[End]] = {}
    async with jetstream(server.address, patience_s=20.0) as log:
        with stopped(server):
            for _ in range(WINDOW):
                begin(log, ends)
            assert not log.begin(ANN, new_task(), record_of(created()), 0, lambda _: None)
            waiting = [asyncio.ensure_future(log.append(ANN, new_task(), record_of(created()), 0)) for _ in range(50)]
            await asyncio.sleep(0)
        while not all(one.done() for one in waiting):
            for _ in range(50):  # whoever begins takes all that becomes free
                record = record_of(created())
                told: list[End] = []
                if not log.begin(ANN, new_task(), record, 0, told.append):
                    break
                ends[record.record_id] = told
            await asyncio.sleep(0.001)
        await check(log, ends)
        assert all(isinstance(told[0], Recorded) for told in ends.values())


async def test_what_waits_in_the_client_when_the_connection_breaks_is_stored_once(
    nats_address: NatsAddress, kind: type[Appender]
):
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address, patience_s=20.0, joins=kind is JoiningAppender) as log:
        for _ in range(5):
            for _ in range(100):
                begin(log, ends)
            await asyncio.sleep(0)  # joined, they are put a turn later
            await asyncio.sleep(0)
            log.connection._wire.close()  # pyright: ignore[reportPrivateUsage]  # as a network does it
            await until(lambda: all_told(ends))
        await check(log, ends)
        assert Counter(type(told[0]) for told in ends.values()) == {Recorded: 500}


async def test_a_batch_whose_acknowledgement_is_lost_is_found_to_be_stored(
    nats_address: NatsAddress, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(joining, "FROM", 2)
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address, joins=True) as log:
        for _ in range(10):
            begin(log, ends)
        await asyncio.sleep(0)
        appender = appender_of(log)
        assert isinstance(appender, JoiningAppender)
        batch = appender._batch  # pyright: ignore[reportPrivateUsage]  # its answer is to be lost
        assert batch is not None
        appender._stream.ignore(batch)  # pyright: ignore[reportPrivateUsage]  # the same
        await check(log, ends)
        assert sorted(told[0].sequence for told in ends.values() if isinstance(told[0], Recorded)) == [*range(1, 11)]


async def test_after_a_reconnect_no_batch_is_waited_for(nats_address: NatsAddress, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(joining, "FROM", 2)
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address, joins=True) as log:
        for _ in range(10):
            begin(log, ends)
        await asyncio.sleep(0)
        appender = appender_of(log)
        assert isinstance(appender, JoiningAppender)
        assert appender._batch is not None  # pyright: ignore[reportPrivateUsage]  # it is on its way
        appender._wake()  # pyright: ignore[reportPrivateUsage]  # as after a reconnect
        assert appender._batch is None  # pyright: ignore[reportPrivateUsage]  # what comes now goes at once
        await check(log, ends)


async def test_a_batch_that_finds_no_room_is_refused_to_each_who_finds_none(
    nats_address: NatsAddress, kind: type[Appender]
):
    ends: dict[str, list[End]] = {}
    async with jetstream(nats_address, max_bytes=64 * 1024, joins=kind is JoiningAppender) as log:
        for _ in range(20):
            begin(log, ends, "x" * 6000)
        await check(log, ends)
        assert {type(told[0]) for told in ends.values()} == {Recorded, LogFull}
        (small,) = await grow(log, new_task(), 1)
        await grow(log, small.task_id, 1, small)


async def test_whoever_goes_away_at_whatever_moment_leaves_an_append_that_is_whole(
    nats_address: NatsAddress, kind: type[Appender]
):
    async with jetstream(nats_address, joins=kind is JoiningAppender) as log:
        first = [one for _ in range(100) for one in await grow(log, new_task(), 1)]
        following: list[asyncio.Task[Recorded]] = []
        for n, last in enumerate(first):
            following.append(
                asyncio.ensure_future(log.append(ANN, last.task_id, record_of(said(), last), last.sequence))
            )
            for _ in range(n % 12 + 1):
                await asyncio.sleep(0)
            following[-1].cancel()
        await asyncio.wait(following)
        appender = appender_of(log)
        await until(lambda: not appender._flights and not appender._settling)  # pyright: ignore[reportPrivateUsage]  # those that nobody waits for
        stored = await everything(log)
        assert [one.record.version for one in stored].count(2) == 100
        assert len(stored) == 200
