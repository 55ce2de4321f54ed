"""The election: at most one leads at any moment, and the next one begins soon after the last one is gone."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest

from eventstore.connection import Connection, NatsAddress
from eventstore.election import Election
from eventstore.log import BadSubject
from eventstore.server import EmbeddedServer

TTL = timedelta(seconds=1.5)
LONG = timedelta(seconds=60)

Candidate = Callable[[timedelta], Awaitable[Election]]


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def candidate(nats_address: NatsAddress, stack: AsyncExitStack) -> Candidate:
    """Candidates, each on a connection of its own, as processes have them."""

    async def open_candidate(ttl: timedelta) -> Election:
        connection = await Connection.open(nats_address, "tests")
        stack.push_async_callback(connection.close)
        election = await Election.open(connection, "dispatcher", ttl=ttl)
        stack.push_async_callback(election.close)
        return election

    return open_candidate


async def ended(campaign: asyncio.Task[None]) -> None:
    campaign.cancel()
    await asyncio.wait({campaign})


async def test_of_two_candidates_one_leads(candidate: Candidate) -> None:
    first, second = await candidate(TTL), await candidate(TTL)
    campaigns = {asyncio.create_task(first.campaign()), asyncio.create_task(second.campaign())}
    done, waiting = await asyncio.wait(campaigns, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    until = time.monotonic() + 2 * TTL.total_seconds()
    while time.monotonic() < until:  # renewed: one term is longer than a time to live
        assert first.leading != second.leading
        await asyncio.sleep(0.02)
    for campaign in waiting:
        await ended(campaign)


async def test_the_leaders_death_hands_over_and_never_do_two_lead(
    candidate: Candidate, nats_address: NatsAddress
) -> None:
    connection = await Connection.open(nats_address, "tests")
    leader = await Election.open(connection, "dispatcher", ttl=TTL)
    await leader.campaign()
    successor = await candidate(TTL)
    campaign = asyncio.create_task(successor.campaign())
    await connection.close()  # cut off: it can't renew, nor resign
    async with asyncio.timeout(10):
        while not campaign.done():
            assert not (leader.leading and successor.leading)
            await asyncio.sleep(0.01)
    assert successor.leading
    assert not leader.leading
    await asyncio.wait_for(leader.deposed(), 10)


async def test_a_leader_whose_loop_was_blocked_for_too_long_knows_that_it_leads_no_more(candidate: Candidate) -> None:
    leader = await candidate(TTL)
    await leader.campaign()
    assert leader.leading
    time.sleep(TTL.total_seconds())  # noqa: ASYNC251  # blocked: that is the point
    assert not leader.leading
    await asyncio.wait_for(leader.deposed(), 10)
    assert not leader.leading
    await asyncio.wait_for(leader.campaign(), 10)
    assert leader.leading


async def test_a_leader_that_resigns_is_succeeded_at_once(candidate: Candidate) -> None:
    leader, successor = await candidate(LONG), await candidate(LONG)
    await leader.campaign()
    campaign = asyncio.create_task(successor.campaign())
    await asyncio.sleep(0.2)  # so that the successor waits; if it does not yet, there is less to show, never a failure
    assert not successor.leading
    await leader.resign()
    assert not leader.leading
    await asyncio.wait_for(campaign, 10)  # a sixth of the time to live, and less than its next attempt by itself
    assert successor.leading
    await asyncio.wait_for(leader.deposed(), 1)


async def test_a_restart_of_the_server_leaves_exactly_one_leader(server: EmbeddedServer, stack: AsyncExitStack) -> None:
    candidates: list[Election] = []
    for _ in range(2):
        connection = await Connection.open(server.address, "tests")
        stack.push_async_callback(connection.close)
        candidates.append(await Election.open(connection, "dispatcher", ttl=TTL))
        stack.push_async_callback(candidates[-1].close)
    leader, successor = candidates
    await leader.campaign()
    campaign = asyncio.create_task(successor.campaign())
    for down_s in (0.0, 2 * TTL.total_seconds()):
        await server.kill()
        await asyncio.sleep(down_s)
        await server.restart()
        async with asyncio.timeout(15):
            if down_s:
                await leader.deposed()  # nobody could renew for longer than a term is trusted
                await campaign
            else:
                await asyncio.sleep(TTL.total_seconds())
        assert leader.leading != successor.leading


async def test_a_deleted_bucket_is_made_again(server: EmbeddedServer, stack: AsyncExitStack) -> None:
    connection = await Connection.open(server.archive_address, "tests")
    stack.push_async_callback(connection.close)
    leader = await Election.open(connection, "dispatcher", ttl=TTL)
    stack.push_async_callback(leader.close)
    await leader.campaign()
    await connection.api("STREAM.DELETE.KV_leader")
    async with asyncio.timeout(10):
        await leader.deposed()
        await leader.campaign()
    assert leader.leading


async def test_offices_are_apart(nats_address: NatsAddress, stack: AsyncExitStack) -> None:
    connection = await Connection.open(nats_address, "tests")
    stack.push_async_callback(connection.close)
    for office in ("dispatcher", "archivist"):
        election = await Election.open(connection, office, ttl=TTL)
        stack.push_async_callback(election.close)
        await asyncio.wait_for(election.campaign(), 10)
        assert election.leading
    with pytest.raises(BadSubject):
        await Election.open(connection, "a.b")
