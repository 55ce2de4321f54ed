"""The work queue: an item may come twice or be lost; whoever is late by its own clock says nothing more."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

import pytest

from eventstore.connection import Connection, NatsAddress
from eventstore.events import Owner, TaskId
from eventstore.heartbeats import HeartbeatThread, ask_alive
from eventstore.log import BadSubject, LogUnavailable
from eventstore.queue import Lease, Queue, WorkItem, announce_lost, on_lost
from eventstore.server import EmbeddedServer

ID = TaskId("task_0197f1a0-0000-7000-8000-000000000001")
ITEM = WorkItem(owner=Owner("ann"), task_id=ID, agent="simulator")
SHORT = timedelta(seconds=1)
LONG = timedelta(seconds=30)

Opens = Callable[[timedelta], Awaitable[Queue]]


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def connection(nats_address: NatsAddress, stack: AsyncExitStack) -> Connection:
    connection = await Connection.open(nats_address, "tests")
    stack.push_async_callback(connection.close)
    return connection


@pytest.fixture
async def beats(nats_address: NatsAddress, stack: AsyncExitStack) -> HeartbeatThread:
    beats = await HeartbeatThread.open(nats_address)
    stack.push_async_callback(beats.close)
    return beats


@pytest.fixture
def opened(nats_address: NatsAddress, stack: AsyncExitStack) -> Opens:
    """Queues, each on a connection of its own, as processes have them."""
    return partial(open_queue, stack, nats_address)


@pytest.fixture
def mortal(server: EmbeddedServer, stack: AsyncExitStack) -> Opens:
    """Queues on the server that the test kills."""
    return partial(open_queue, stack, server.address)


async def open_queue(stack: AsyncExitStack, address: NatsAddress, lease: timedelta) -> Queue:
    connection = await Connection.open(address, "tests")
    stack.push_async_callback(connection.close)
    queue = await Queue.open(connection, lease=lease)
    stack.push_async_callback(queue.close)
    return queue


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fact():  # noqa: ASYNC110  # facts of a clock, another thread or the server: none sets an event
            await asyncio.sleep(0.01)


async def taken(queue: Queue, *, wait_s: float = 10.0, agent: str = "simulator") -> Lease:
    lease = await queue.take(agent, wait_s=wait_s)
    assert lease is not None
    return lease


async def test_an_offered_item_is_taken_once_and_finished_for_good(opened: Opens) -> None:
    queue = await opened(SHORT)
    await queue.offer(ITEM)
    lease = await taken(queue)
    assert (lease.item, lease.deliveries, lease.alive()) == (ITEM, 1, True)
    assert await queue.take("simulator", wait_s=0.1) is None
    assert await lease.finish()
    assert not lease.alive()
    assert await queue.depth() == {}
    assert await queue.take("simulator", wait_s=1.5) is None  # longer than the lease: nothing comes back


async def test_where_nothing_is_offered_a_take_ends_in_time(opened: Opens) -> None:
    queue = await opened(LONG)
    began = time.monotonic()
    assert await queue.take("simulator", wait_s=0.3) is None
    assert time.monotonic() - began < 5


async def test_an_item_offered_twice_is_there_twice(opened: Opens) -> None:
    queue = await opened(LONG)
    await queue.offer(ITEM)
    await queue.offer(ITEM)
    first, second = await taken(queue), await taken(queue)
    assert first.item == second.item == ITEM
    assert await first.finish()
    assert second.alive()
    assert await queue.depth() == {"simulator": 1}
    assert await second.finish()


async def test_takers_get_items_of_their_agent_only_and_the_depth_is_told_by_agent(opened: Opens) -> None:
    queue = await opened(LONG)
    other = WorkItem(owner=Owner("ann"), task_id=ID, agent="researcher", lost_run=3)
    await queue.offer(ITEM)
    await queue.offer(other)
    await queue.offer(other)
    assert (await taken(queue, agent="researcher")).item == other
    assert await queue.take("nobody", wait_s=0.1) is None
    assert await queue.depth() == {"simulator": 1, "researcher": 2}


async def test_an_agent_with_an_impossible_name_is_refused(opened: Opens) -> None:
    queue = await opened(LONG)
    with pytest.raises(BadSubject):
        await queue.take("a.>", wait_s=0.1)
    with pytest.raises(BadSubject):
        await queue.offer(WorkItem(owner=Owner("ann"), task_id=ID, agent="*"))


async def test_the_item_of_a_silent_holder_goes_to_another(opened: Opens) -> None:
    holder, other = await opened(SHORT), await opened(SHORT)
    await holder.offer(ITEM)
    silent = await taken(holder)
    second = await taken(other)
    assert not silent.alive()
    assert (second.item, second.deliveries) == (ITEM, 2)


async def test_a_zombies_late_finish_leaves_the_new_holders_item_alone(opened: Opens, beats: HeartbeatThread) -> None:
    zombie_queue, other = await opened(SHORT), await opened(SHORT)
    await other.offer(ITEM)
    zombie = await taken(zombie_queue)
    holder = await taken(other)
    beats.keep(holder)
    assert not await zombie.finish()
    beats.release(holder)  # the new holder dies; its item must still be there for a third
    assert (await taken(other)).deliveries == 3


async def test_a_dropped_item_is_neither_finished_nor_kept(opened: Opens, beats: HeartbeatThread) -> None:
    queue = await opened(SHORT)
    await queue.offer(ITEM)
    dropped = await taken(queue)
    beats.keep(dropped)
    dropped.drop()
    assert not dropped.alive()
    assert not await dropped.finish()
    assert (await taken(queue)).deliveries == 2


async def test_a_zombies_heartbeat_does_not_keep_an_item_from_others(opened: Opens, beats: HeartbeatThread) -> None:
    queue, other = await opened(SHORT), await opened(SHORT)
    await queue.offer(ITEM)
    zombie = await taken(queue)
    await until(lambda: not zombie.alive())
    beats.keep(zombie)  # too late by its own clock: nothing is sent, and it never comes back to life
    assert (await taken(other)).deliveries == 2
    assert not zombie.alive()


async def test_beats_keep_an_item_while_the_workers_loop_is_blocked(opened: Opens, beats: HeartbeatThread) -> None:
    queue, other = await opened(SHORT), await opened(SHORT)
    await queue.offer(ITEM)
    lease = await taken(queue)
    beats.hold(lease, ID, 1)
    time.sleep(2.5)  # noqa: ASYNC251  # an agent that blocks: that is the point
    assert lease.alive()
    assert await other.take("simulator", wait_s=0.2) is None
    assert await lease.finish()
    assert await other.depth() == {}


async def test_beats_go_on_after_the_server_was_killed(
    mortal: Opens, server: EmbeddedServer, stack: AsyncExitStack
) -> None:
    queue = await mortal(timedelta(seconds=3))
    beats = await HeartbeatThread.open(server.address)
    stack.push_async_callback(beats.close)
    await queue.offer(ITEM)
    lease = await taken(queue)
    beats.keep(lease)
    await server.kill()
    await server.restart()
    await until(lambda: time.monotonic() > lease.taken_at + lease.lease.total_seconds())
    # (Whether an ack would count is another matter: the server may have died before it wrote the delivery down.)
    assert lease.alive()


async def test_a_holder_that_hears_nothing_from_the_server_knows_that_it_is_late(
    mortal: Opens, server: EmbeddedServer, stack: AsyncExitStack
) -> None:
    queue = await mortal(SHORT)
    beats = await HeartbeatThread.open(server.address)
    stack.push_async_callback(beats.close)
    await queue.offer(ITEM)
    lease = await taken(queue)
    beats.keep(lease)
    await server.kill()
    await until(lambda: not lease.alive())
    assert not await lease.finish()
    await server.restart()
    # (Killed so soon after a delivery, the server may have forgotten that there was one: its count proves nothing.)
    assert (await taken(queue)).item == ITEM
    assert not lease.alive()


async def test_a_held_run_is_known_to_be_alive_even_while_its_loop_is_blocked(
    opened: Opens, beats: HeartbeatThread, nats_address: NatsAddress
) -> None:
    async def ask() -> None:
        connection = await Connection.open(nats_address, "tests")
        answers.append(await ask_alive(connection, ID, 4, wait_s=5.0))
        await connection.close()

    queue = await opened(SHORT)
    await queue.offer(ITEM)
    beats.hold(await taken(queue), ID, 4)
    answers: list[bool] = []
    asking = threading.Thread(target=lambda: asyncio.run(ask()))
    asking.start()
    asking.join()
    assert answers == [True]


async def test_a_run_that_nobody_holds_is_known_to_be_dead(
    opened: Opens, beats: HeartbeatThread, connection: Connection
) -> None:
    assert not await ask_alive(connection, ID, 1, wait_s=0.2)
    queue = await opened(SHORT)
    await queue.offer(ITEM)
    lease = await taken(queue)
    beats.hold(lease, ID, 1)
    for _ in range(1000):
        if await ask_alive(connection, ID, 1):
            break
    else:
        pytest.fail("the holder does not answer")
    assert not await ask_alive(connection, ID, 2)
    lease.drop()
    assert not await ask_alive(connection, ID, 1)


async def test_a_holder_that_is_silent_is_dead(connection: Connection) -> None:
    async def say_nothing(_: object) -> None: ...

    await connection.subscribe(f"alive.{ID}.1", say_nothing)
    assert not await ask_alive(connection, ID, 1, wait_s=0.2)


async def test_where_the_question_can_not_be_asked_nobody_is_declared_dead(
    server: EmbeddedServer, stack: AsyncExitStack
) -> None:
    connection = await Connection.open(server.address, "tests")
    stack.push_async_callback(connection.close)
    await server.kill()
    await until(lambda: not connection.connected)
    with pytest.raises(LogUnavailable):
        await ask_alive(connection, ID, 1, wait_s=0.2)
    await server.restart()
    await until(lambda: connection.connected)


async def test_an_item_that_arrives_for_a_cancelled_take_goes_to_the_next(opened: Opens) -> None:
    queue, other = await opened(LONG), await opened(LONG)
    for next_taker in (queue, other):
        taking = asyncio.create_task(queue.take("simulator", wait_s=20.0))
        await asyncio.sleep(
            0.2
        )  # so that the pull is at the server; if it is not, there is less to show, never a failure
        taking.cancel()
        await asyncio.wait({taking})
        await queue.offer(ITEM)
        lease = await taken(next_taker, wait_s=15.0)  # half of the lease
        assert lease.item == ITEM
        assert await lease.finish()


async def test_a_purged_item_offered_again_is_delivered(server: EmbeddedServer, stack: AsyncExitStack) -> None:
    archive = await Connection.open(server.archive_address, "tests")
    stack.push_async_callback(archive.close)
    queue = await Queue.open(archive, lease=LONG)
    stack.push_async_callback(queue.close)
    await queue.offer(ITEM)
    held = await taken(queue)
    await queue.offer(ITEM)
    await archive.api("STREAM.PURGE.WORK")
    await queue.offer(ITEM)
    assert (await taken(queue)).item == ITEM
    await held.finish()
    assert await queue.depth() == {"simulator": 1}


async def test_a_deleted_stream_or_consumer_heals_by_itself(server: EmbeddedServer, stack: AsyncExitStack) -> None:
    archive = await Connection.open(server.archive_address, "tests")
    stack.push_async_callback(archive.close)
    queue = await Queue.open(archive, lease=LONG)
    stack.push_async_callback(queue.close)
    for gone in ("STREAM.DELETE.WORK", "CONSUMER.DELETE.WORK.worker-simulator"):
        assert await queue.take("simulator", wait_s=0.1) is None
        await archive.api(gone)
        await queue.offer(ITEM)
        assert await (await taken(queue)).finish()
        taking = asyncio.create_task(queue.take("simulator", wait_s=20.0))
        await asyncio.sleep(0.2)  # so that it is deleted under a waiting pull; earlier is fine too
        await archive.api(gone)
        await queue.offer(ITEM)
        lease = await taking
        assert lease is not None
        assert await lease.finish()


async def test_a_take_survives_that_the_server_is_killed_under_it(mortal: Opens, server: EmbeddedServer) -> None:
    queue = await mortal(LONG)
    assert await queue.take("simulator", wait_s=0.1) is None
    taking = asyncio.create_task(queue.take("simulator", wait_s=30.0))
    await asyncio.sleep(0.2)
    await server.kill()
    await server.restart()
    async with asyncio.timeout(10):  # less than the pull that died would have lasted
        while True:
            try:
                await queue.offer(ITEM)
                break
            except LogUnavailable:
                await asyncio.sleep(0.05)
        lease = await taking
    assert lease is not None
    assert lease.item == ITEM


async def test_what_was_offered_survives_the_servers_death(mortal: Opens, server: EmbeddedServer) -> None:
    queue = await mortal(LONG)
    await queue.offer(ITEM)
    await server.kill()
    with pytest.raises(LogUnavailable):
        await queue.take("simulator", wait_s=0.3)
    with pytest.raises(LogUnavailable):
        await queue.offer(WorkItem(owner=Owner("ann"), task_id=ID, agent="researcher"))
    await server.restart()
    assert (await taken(queue)).item == ITEM


async def test_a_message_that_is_no_item_is_put_aside(opened: Opens, connection: Connection) -> None:
    queue = await opened(LONG)
    await connection.request("work.simulator", b"what?")
    await queue.offer(ITEM)
    assert (await taken(queue)).item == ITEM
    assert await queue.depth() == {"simulator": 1}


async def test_a_lost_worker_is_announced_by_name(connection: Connection) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await on_lost(connection, heard.put_nowait)
    await announce_lost(connection, "worker-7_Q")
    assert await asyncio.wait_for(heard.get(), 5) == "worker-7_Q"
    with pytest.raises(BadSubject):
        await announce_lost(connection, "a.b")
