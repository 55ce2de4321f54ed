"""The tail on a real server that dies, stands still, forgets or goes back: whole within 2 s, and nothing missed.

The bound asserted is generous, for machines that are busy with something else; what it took is logged (`pytest -rP`).
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from time import monotonic

import msgspec
import pytest
import structlog
from nats.aio.msg import Msg

from eventstore.client import Delivery, Take
from eventstore.connection import Connection, NatsAddress
from eventstore.events import TaskId
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.log import LogUnavailable, Recorded, task_subject
from eventstore.server import EmbeddedServer, find_binary
from eventstore.tail import StreamTail
from tests.log.logs import (
    ANN,
    WHOLE_WITHIN_S,
    Ear,
    created,
    gone_back,
    grow,
    jetstream,
    new_task,
    record_of,
    stopped,
    tail_of,
    until,
)

say = structlog.stdlib.get_logger()


@pytest.fixture
async def log(server: EmbeddedServer) -> AsyncGenerator[JetStreamLog]:
    async with jetstream(server.address) as log:
        yield log


async def whole_again(tail: StreamTail, ear: Ear, last: int, since: float) -> None:
    """The tail reaches `last`, having told everything once and in order, and says that it is proven."""
    async with asyncio.timeout(WHOLE_WITHIN_S):
        await tail.reach(last)
    took_s = monotonic() - since
    assert ear.sequences == [*range(1, last + 1)]
    await until(lambda: tail.proven, WHOLE_WITHIN_S)
    say.info("measured", whole_s=took_s, proven_s=monotonic() - since, recreations=tail.recreations)


async def writes(log: JetStreamLog, count: int) -> int:
    """Append so many records at once, each to a task of its own; the last sequence."""
    appended = await asyncio.gather(*[log.append(ANN, new_task(), record_of(created()), 0) for _ in range(count)])
    return max(one.sequence for one in appended)


async def test_killed_before_anything_was_delivered(server: EmbeddedServer, log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        await server.kill()
        await server.restart()
        since = monotonic()
        await whole_again(tail, ear, await writes(log, 20), since)


async def test_killed_after_deliveries(server: EmbeddedServer, log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        for _ in range(3):
            heard = len(ear.arrivals)
            writing = asyncio.ensure_future(writes(log, 5_000))
            await ear.has(heard + 1)
            await server.kill()
            assert not writing.done()
            await server.restart()
            since = monotonic()
            await whole_again(tail, ear, await writing, since)


async def test_killed_and_away_for_a_while(server: EmbeddedServer, log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        await writes(log, 10)
        await server.kill()
        await until(lambda: not tail.proven)
        with pytest.raises(LogUnavailable):
            await tail.catch_up()
        await server.restart()
        since = monotonic()
        async with jetstream(server.address) as other:
            last = await writes(other, 20)
        await whole_again(tail, ear, last, since)


async def test_standing_still_for_three_seconds(server: EmbeddedServer, log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        await writes(log, 10)
        await ear.has(10)
        with stopped(server):
            writing = asyncio.ensure_future(writes(log, 10))
            unproven_s = await until(lambda: not tail.proven)
            await asyncio.sleep(3.0 - unproven_s)
        since = monotonic()
        last = max(await writing, await writes(log, 100))
        await whole_again(tail, ear, last, since)


async def test_a_burst_is_taken_whole_and_nothing_of_it_has_to_be_mended(log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        last = await writes(log, 5_000)
        await tail.reach(last)
        assert ear.sequences == [*range(1, last + 1)]
        assert tail.recreations == 0


async def test_a_record_that_was_lost_on_the_way_is_noticed_by_the_next(log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        await writes(log, 10)
        await ear.has(10)
        lose_the_next(log.connection)
        since = monotonic()
        await whole_again(tail, ear, await writes(log, 10), since)
        assert tail.recreations == 1


def lose_the_next(connection: Connection) -> None:
    """The next record to come to this connection never gets there."""
    takers = connection.client.takers  # a wire can't be had to lose this one
    lost: list[Delivery] = []

    def losing(take: Take) -> Take:
        def hear(said: Delivery) -> None:
            if said.reply.startswith("$JS.ACK.") and not lost:
                lost.append(said)
            else:
                take(said)

        return hear

    for subscription, take in takers.items():
        takers[subscription] = losing(take)


async def test_its_consumer_is_deleted_under_it(log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        await writes(log, 10)
        await ear.has(10)
        for consumer in await consumers(log.connection):
            await log.connection.api(f"CONSUMER.DELETE.{STREAM}.{consumer}")
        since = monotonic()
        await whole_again(tail, ear, await writes(log, 10), since)


async def consumers(connection: Connection) -> list[str]:
    names = (await connection.api(f"CONSUMER.NAMES.{STREAM}"))["consumers"]
    return msgspec.convert(names, list[str] | None) or []


async def inbox_of(connection: Connection) -> str:
    (consumer,) = await consumers(connection)
    config = (await connection.api(f"CONSUMER.INFO.{STREAM}.{consumer}"))["config"]
    return str(msgspec.convert(config, dict[str, object])["deliver_subject"])


async def test_whatever_happened_it_has_one_consumer_and_in_the_end_none(server: EmbeddedServer, log: JetStreamLog):
    async with tail_of(log, Ear(), after=0) as tail:
        for _ in range(3):
            recreations = tail.recreations
            await server.kill()
            await server.restart()
            await writes(log, 5)
            await until(lambda before=recreations: tail.recreations > before)
            await tail.catch_up()
        await until_consumers(log.connection, 1)
    await until_consumers(log.connection, 0)


async def until_consumers(connection: Connection, count: int) -> None:
    async with asyncio.timeout(4):  # sooner than the server would forget one that nobody listens to
        while len(await consumers(connection)) != count:  # noqa: ASYNC110  # the server does not announce it
            await asyncio.sleep(0.01)


async def test_a_heartbeat_that_knows_more_is_believed(log: JetStreamLog):
    ear = Ear()
    async with tail_of(log, ear) as tail:
        await writes(log, 10)
        await ear.has(10)
        since = monotonic()
        # As the server would say it, had the last ten been lost on the way.
        knows_more = {"Nats-Last-Consumer": "20", "Nats-Last-Stream": "20"}
        await log.connection.publish(await inbox_of(log.connection), headers=knows_more)
        await until(lambda: tail.recreations == 1)
        await whole_again(tail, ear, await writes(log, 10), since)


async def test_records_that_were_purged_are_passed_over(server: EmbeddedServer, log: JetStreamLog):
    ear = Ear()
    kept = await grow(log, new_task(), 3)
    gone = await grow(log, new_task(), 3)
    archive = await Connection.open(server.archive_address, "archive")
    await archive.api(f"STREAM.PURGE.{STREAM}", {"filter": task_subject(ANN, gone[0].task_id)})
    await archive.close()
    async with tail_of(log, ear, after=0) as tail:
        await tail.catch_up()
        assert (tail.position, ear.sequences) == (gone[-1].sequence, [one.sequence for one in kept])
        await until(lambda: tail.proven)
        (after,) = await grow(log, new_task(), 1)
        await tail.catch_up()
        assert ear.sequences[-1] == tail.position == after.sequence
        await server.kill()
        await server.restart()
        await tail.catch_up()
    assert (ear.resets, len(ear.arrivals)) == (0, 4)


async def test_an_older_directory_put_back_is_another_log(server: EmbeddedServer, log: JetStreamLog, tmp_path: Path):
    ear, task = Ear(), new_task()
    async with tail_of(log, ear) as tail:
        waiting = asyncio.ensure_future(tail.reach(1000))
        first = await gone_back(server, log, tmp_path, task)
        await until(lambda: len(ear.arrivals) == 20)
        await server.restart()
        since = monotonic()
        await until(lambda: ear.resets == 1, WHOLE_WITHIN_S)
        assert tail.position == 10
        with pytest.raises(LogUnavailable):
            await waiting
        (after,) = await grow(log, task, 1, first[-1])
        await tail.catch_up()
        say.info("measured", whole_s=monotonic() - since)
        assert [one.stored for one in ear.arrivals] == [after.stored]
        await until(lambda: tail.proven)
        assert ear.resets == 1


async def test_an_older_directory_that_has_outgrown_the_tail_is_another_log(
    server: EmbeddedServer, log: JetStreamLog, tmp_path: Path
):
    ear, task = Ear(), new_task()
    async with tail_of(log, ear, after=0):
        first = await gone_back(server, log, tmp_path, task)
        await until(lambda: len(ear.arrivals) == 20)
        # The new life's first words are said where this tail can't hear them.
        other_life = await grown_elsewhere(tmp_path, task, first[-1])
        await server.restart()
        since = monotonic()
        await until(lambda: ear.resets == 1, WHOLE_WITHIN_S)
        await ear.has(40, WHOLE_WITHIN_S)
        say.info("measured", whole_s=monotonic() - since)
        assert [one.stored for one in ear.arrivals] == [one.stored for one in [*first, *other_life]]
        assert ear.resets == 1


async def grown_elsewhere(directory: Path, task: TaskId, after: Recorded) -> list[Recorded]:
    """Thirty records, appended on another port before the clients of the last life come back to the old one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ("-js", "-sd", str(directory / "nats-data" / "nats"), "-a", "127.0.0.1", "-p", port)
    elsewhere = await asyncio.create_subprocess_exec(find_binary(), *options, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with jetstream(NatsAddress(url=f"nats://127.0.0.1:{port}")) as log:
            return await grow(log, task, 30, after)
    finally:
        elsewhere.terminate()
        await elsewhere.wait()


async def test_a_fast_replay_comes_whole_under_flow_control(log: JetStreamLog):
    ear, count = Ear(), 50_000
    for _ in range(50):
        await writes(log, count // 50)
    async with tail_of(log, ear, after=0) as tail:
        since = monotonic()
        await ear.has(count)
        say.info("measured", records_a_second=count / (monotonic() - since))
        assert ear.sequences == [*range(1, count + 1)]
        assert tail.recreations == 0


async def test_polls_that_come_together_share_one_question(server: EmbeddedServer, log: JetStreamLog):
    questions = 0

    async def count(_: Msg) -> None:
        nonlocal questions
        questions += 1

    listener = await Connection.open(server.address, "listener")
    async with tail_of(log, Ear()) as tail:
        await writes(log, 10)
        await listener.subscribe(f"$JS.API.STREAM.INFO.{STREAM}", count)
        await listener.request("$JS.API.INFO")  # the server knows now who listens
        await asyncio.gather(*[tail.catch_up() for _ in range(200)])
        # One for all of them, and those that the tail asks by itself, four a second.
        assert 1 <= questions <= 20
    await listener.close()


async def test_a_caller_that_goes_away_takes_nobody_elses_answer_along(log: JetStreamLog):
    async with tail_of(log, Ear()) as tail:
        first, second = (asyncio.ensure_future(tail.catch_up()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert first.cancelled()


async def test_questions_that_nobody_waits_for_any_more_end_quietly(server: EmbeddedServer, log: JetStreamLog):
    async with tail_of(log, Ear()) as tail:
        await server.kill()
        asking = asyncio.ensure_future(tail.catch_up())
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
    await server.restart()
