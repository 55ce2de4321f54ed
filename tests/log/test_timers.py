"""Deadlines as scheduled messages: they fire once their time has come, whatever the server went through before."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from msgspec import Struct

from eventstore.connection import Connection, NatsAddress
from eventstore.events import Owner, TaskId
from eventstore.log import BadSubject, LogUnavailable
from eventstore.server import EmbeddedServer
from eventstore.timers import DueTimer, Timer, TimerKind, Timers

ID = TaskId("task_0197f1a0-0000-7000-8000-000000000001")
OTHER = TaskId("task_0197f1a0-0000-7000-8000-000000000002")


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def opened(address: NatsAddress, stack: AsyncExitStack, *, ack_wait: timedelta = timedelta(seconds=10)) -> Timers:
    connection = await Connection.open(address, "tests")
    stack.push_async_callback(connection.close)
    timers = await Timers.open(connection, ack_wait=ack_wait)
    stack.push_async_callback(timers.close)
    return timers


def due_in(seconds: float, task_id: TaskId = ID, kind: TimerKind = "deadline") -> Timer:
    return Timer(owner=Owner("ann"), task_id=task_id, kind=kind, at=datetime.now(UTC) + timedelta(seconds=seconds))


async def taken(timers: Timers) -> DueTimer:
    due = await timers.take(wait_s=15.0)
    assert due is not None
    return due


class _State(Struct):
    messages: int


class _Info(Struct):
    state: _State


async def stored(address: NatsAddress) -> int:
    """How many messages the stream holds, set and due."""
    connection = await Connection.open(address, "tests")
    try:
        return msgspec.convert(await connection.api("STREAM.INFO.TIMERS"), _Info).state.messages
    finally:
        await connection.close()


async def test_a_timer_fires_when_its_time_has_come_and_leaves_nothing_behind(
    nats_address: NatsAddress, stack: AsyncExitStack
) -> None:
    timers = await opened(nats_address, stack)
    timer = due_in(0.8)
    await timers.set(timer)
    assert await stored(nats_address) == 1
    due = await taken(timers)
    assert due.timer == timer
    assert datetime.now(UTC) >= timer.at - timedelta(milliseconds=50)  # the server's clock and ours read apart
    assert await due.done()
    assert await stored(nats_address) == 0


async def test_a_time_already_past_fires_at_once(nats_address: NatsAddress, stack: AsyncExitStack) -> None:
    timers = await opened(nats_address, stack)
    await timers.set(due_in(-3600))
    assert await (await taken(timers)).done()
    assert await stored(nats_address) == 0


async def test_a_timer_set_again_replaces_the_one_before(nats_address: NatsAddress, stack: AsyncExitStack) -> None:
    timers = await opened(nats_address, stack)
    await timers.set(due_in(0.5))
    await timers.set(later := due_in(1.0))
    due = await taken(timers)
    assert due.timer == later
    assert await due.done()
    await timers.set(due_in(3600))
    await timers.set(sooner := due_in(0.1))
    due = await taken(timers)
    assert due.timer == sooner
    assert await due.done()
    assert await stored(nats_address) == 0


async def test_a_cleared_timer_does_not_fire_and_others_do(nats_address: NatsAddress, stack: AsyncExitStack) -> None:
    timers = await opened(nats_address, stack)
    await timers.set(due_in(0.5))
    await timers.set(retry := due_in(0.5, kind="retry"))
    await timers.set(other := due_in(0.9, OTHER))
    await timers.clear(ID, "deadline")
    await timers.clear(OTHER, "retry")  # there is none: nothing happens
    fired = [await taken(timers), await taken(timers)]
    assert [due.timer for due in fired] == [retry, other]
    assert all([await due.done() for due in fired])
    assert await timers.take(wait_s=0.3) is None
    assert await stored(nats_address) == 0


async def test_a_due_timer_whose_taker_dies_goes_to_the_next(nats_address: NatsAddress, stack: AsyncExitStack) -> None:
    first = await opened(nats_address, stack, ack_wait=timedelta(seconds=1))
    second = await opened(nats_address, stack, ack_wait=timedelta(seconds=1))
    await first.set(timer := due_in(0.1))
    silent = await taken(first)
    again = await taken(second)
    assert again.timer == timer
    assert not await silent.done()  # too late: nothing is sent, the second taker's is its own
    assert await again.done()


async def test_a_timer_survives_the_servers_death(server: EmbeddedServer, stack: AsyncExitStack) -> None:
    timers = await opened(server.address, stack)
    await timers.set(timer := due_in(3.0))
    await server.kill()
    await server.restart()
    due = await taken(timers)
    assert due.timer == timer
    assert await due.done()
    assert await stored(server.address) == 0


async def test_a_timer_that_fell_due_while_the_server_was_down_fires_at_its_start(
    server: EmbeddedServer, stack: AsyncExitStack
) -> None:
    timers = await opened(server.address, stack)
    await timers.set(timer := due_in(1.5))
    await server.kill()
    await asyncio.sleep((timer.at - datetime.now(UTC)).total_seconds())
    with pytest.raises(LogUnavailable):
        await timers.set(due_in(1.0, OTHER))
    await server.restart()
    due = await taken(timers)
    assert due.timer == timer
    assert await due.done()


async def test_a_deleted_stream_is_made_again(server: EmbeddedServer, stack: AsyncExitStack) -> None:
    timers = await opened(server.archive_address, stack)
    archive = await Connection.open(server.archive_address, "tests")
    stack.push_async_callback(archive.close)
    await archive.api("STREAM.DELETE.TIMERS")
    await timers.clear(ID, "deadline")
    await timers.set(timer := due_in(0.1))
    assert (await taken(timers)).timer == timer


async def test_a_task_id_that_is_none_is_refused(nats_address: NatsAddress, stack: AsyncExitStack) -> None:
    timers = await opened(nats_address, stack)
    with pytest.raises(BadSubject):
        await timers.clear(TaskId("*"), "deadline")
