"""Request limits over several API processes that share one NATS: together they grant what one would."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest

from app.auth import Principal, principal_of
from app.limits import MAX_WINDOWS, Budget, Limits, RateLimited, Standing
from app.settings import HttpSettings, LimitSettings
from eventstore.connection import Connection, NatsAddress
from eventstore.events import Owner
from eventstore.server import EmbeddedServer
from eventstore.tokens import Plan, Token
from tests.api import DEV, Api, running
from tests.dialects.niyra import TASKS
from tests.log.logs import stopped, until


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def bearer(secret: str = "tt_a", **plan: object) -> Principal:
    token = Token(id="t", owner=Owner("ann"), scopes=("admin",), created_at=datetime.now(UTC), plan=Plan(**plan))  # pyright: ignore[reportArgumentType]  # each test gives what a plan has
    return principal_of(token, secret)


async def granted(limits: Limits, principal: Principal, budget: Budget, times: int) -> int:
    """How many of so many requests."""
    granted = 0
    for _ in range(times):
        try:
            await limits.draw(principal, budget)
            granted += 1
        except RateLimited:
            pass
    return granted


async def test_a_token_asks_as_often_as_its_limit_says_and_then_waits():
    limits = Limits(LimitSettings(), clock=(clock := Clock()))
    for left in range(19, -1, -1):
        clock.now += 0.5
        assert [one.remaining for one in await limits.draw(bearer(), "niyra.execute")] == [left]
    clock.now += 1
    with pytest.raises(RateLimited) as refused:
        await limits.draw(bearer(), "niyra.execute")
    assert refused.value.standings == [Standing("niyra.execute", 20, 0, 60, refused.value.spent.changes_in_s)]
    assert 48 <= refused.value.retry_after_s <= 50
    clock.now += refused.value.retry_after_s
    assert await granted(limits, bearer(), "niyra.execute", 10) in (1, 2)  # a sixtieth's
    assert await granted(limits, bearer("tt_b"), "niyra.execute", 30) == 20
    assert await granted(limits, bearer(), "niyra.ask", 100) == 60
    assert await granted(limits, bearer(), "niyra.poll", 1_000) == 600


async def test_what_is_refused_does_not_count():
    limits = Limits(LimitSettings(), clock=(clock := Clock()))
    for _ in range(3):
        assert await granted(limits, bearer(), "niyra.execute", 1_000) == 20
        clock.now += 60


async def test_a_plan_multiplies_and_a_token_may_have_its_own_limits_or_none():
    limits = Limits(LimitSettings(native_limit=7), clock=Clock())
    assert await granted(limits, bearer("a", multiplier=3), "niyra.execute", 100) == 60
    assert await granted(limits, bearer("b", multiplier=5, limits={"niyra.execute": 2}), "niyra.execute", 100) == 2
    assert await granted(limits, bearer("c", unlimited=True), "niyra.execute", 100) == 100
    assert await granted(limits, bearer("d"), "native", 100) == 7
    assert [one.remaining for one in await limits.draw(bearer("c", unlimited=True), "niyra.execute")] == [20]


async def test_our_own_api_has_no_limit_unless_one_is_set():
    limits = Limits(LimitSettings())
    assert await limits.draw(bearer(), "native") == []
    assert await granted(limits, bearer("b", limits={"native": 3}), "native", 10) == 3


async def test_of_several_windows_the_one_that_is_spent_decides_and_a_refusal_counts_in_none():
    settings = LimitSettings(shannon_minute_limit=10, shannon_hour_limit=25, shannon_day_limit=40)
    limits = Limits(settings, clock=(clock := Clock()))
    spent: list[str] = []
    for _ in range(40):
        clock.now += 60
        try:
            for _ in range(20):
                await limits.draw(bearer(), "shannon")
        except RateLimited as error:
            spent.append(error.spent.name)
    assert set(spent[:2]) == {"shannon.minute"}
    assert set(spent[2:]) == {"shannon.hour"}
    clock.now += 3_600
    assert await granted(limits, bearer(), "shannon", 10) == 10
    clock.now += 60
    assert await granted(limits, bearer(), "shannon", 10) == 5
    with pytest.raises(RateLimited) as refused:
        await limits.draw(bearer(), "shannon")
    assert refused.value.spent.name == "shannon.day"
    assert refused.value.retry_after_s > 3_600 * 20


async def test_tokens_come_and_go_and_memory_is_bounded():
    limits = Limits(LimitSettings(), clock=(clock := Clock()))
    for n in range(5_000):
        clock.now += 1
        await limits.draw(bearer(f"tt_{n}"), "niyra.poll")
    assert limits.windows < 3_000
    for n in range(MAX_WINDOWS + 10_000):
        limits.on_counted(f"niyra.poll:{n}", 1)
    assert limits.windows <= MAX_WINDOWS
    limits.on_counted("a.newer.releases:1", 1)


@asynccontextmanager
async def rooms(nats: NatsAddress, settings: LimitSettings, number: int) -> AsyncGenerator[list[Limits]]:
    """As many processes' limits, all of which know of each other. Their clock stands."""
    async with AsyncExitStack() as stack:
        opened: list[Limits] = []
        for n in range(number):
            limits = Limits(settings, clock=Clock())
            connection = await Connection.open(nats, "limits")
            stack.push_async_callback(connection.close)
            counts = await stack.enter_async_context(limits.shared(connection, f"limits-{n}"))
            await until(lambda counts=counts, n=n: counts.others == n)
            opened.append(limits)
        yield opened


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("limit", [20, 60, 600])
async def test_a_burst_over_several_processes_is_granted_the_limit_and_no_more(
    nats_address: NatsAddress, number: int, limit: int
):
    settings = LimitSettings(niyra_poll_limit=limit)
    async with rooms(nats_address, settings, number) as some:
        # All at once on all of them; on one alone; and one after the other, here and there.
        at_once = [granted(one, bearer("burst"), "niyra.poll", 1) for _ in range(limit) for one in some]
        assert 0.9 * limit <= sum(await asyncio.gather(*at_once)) <= 1.1 * limit
        each = [granted(one, bearer("each"), "niyra.poll", limit) for one in some]
        assert 0.9 * limit <= sum(await asyncio.gather(*each)) <= 1.1 * limit
        assert await granted(some[0], bearer("alone"), "niyra.poll", 2 * limit) == limit
        turns = [await granted(some[n % number], bearer("turns"), "niyra.poll", 1) for n in range(2 * limit)]
        assert 0.9 * limit <= sum(turns) <= 1.1 * limit


async def test_a_process_that_begins_knows_what_was_asked_before(nats_address: NatsAddress):
    async with rooms(nats_address, LimitSettings(), 1) as (one,):
        assert await granted(one, bearer(), "niyra.execute", 15) == 15
        assert await granted(one, bearer(), "shannon", 7) == 7
        other = Limits(LimitSettings(), clock=Clock())
        connection = await Connection.open(nats_address, "limits")
        async with other.shared(connection, "other"):
            await until(lambda: other.windows == 4)
            assert await granted(other, bearer(), "niyra.execute", 15) == 5
            assert [left.remaining for left in await other.draw(bearer(), "shannon")] == [52, 992, 9_992]
        await connection.close()


@asynccontextmanager
async def apis(nats: NatsAddress, number: int, **limits: int) -> AsyncGenerator[list[Api]]:
    async with AsyncExitStack() as stack:
        http = HttpSettings(limits=LimitSettings(**limits))
        yield [await stack.enter_async_context(running(nats, http=http)) for _ in range(number)]


async def statuses(some: list[Api], token: str, times: int) -> Counter[int]:
    """What a token that asks so often, all at once, on all of them in turn, is answered."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
        asked = [client.get(f"{some[n % len(some)].url}{TASKS}/task_x") for n in range(times)]
        return Counter(answer.status_code for answer in await asyncio.gather(*asked))


@pytest.mark.parametrize("number", [2, 3])
async def test_load_spread_over_apis_gets_what_one_api_would_give(nats_address: NatsAddress, number: int):
    async with apis(nats_address, number, niyra_poll_limit=40) as some:
        await some[0].rooms.tokens.add("pat_a", DEV, ("tasks:read",))
        answered = await statuses(some, "pat_a", 150)
        assert 36 <= answered[404] <= 44
        assert answered[404] + answered[429] == 150
        assert sum(api.metric("requests_limited_total", dialect="niyra") for api in some) == answered[429]


async def test_requests_go_on_whatever_becomes_of_nats(server: EmbeddedServer):
    async with apis(server.address, 2, niyra_poll_limit=1_000) as some:
        await some[0].rooms.tokens.add("pat_a", DEV, ("tasks:read",))
        task_id = await some[0].begin()

        async def polled() -> set[int]:
            async with httpx.AsyncClient(headers={"Authorization": "Bearer pat_a"}, timeout=30) as client:
                asked = [client.get(f"{api.url}{TASKS}/{task_id}") for api in some for _ in range(5)]
                return {answer.status_code for answer in await asyncio.gather(*asked)}

        assert await polled() == {200}
        with stopped(server):
            assert await polled() == {200}
        await server.kill()
        await until(lambda: not any(api.rooms.connection.connected for api in some))
        assert await polled() == {200}
        await server.restart()
        await until(lambda: all(api.rooms.connection.connected for api in some))
        assert await polled() == {200}
