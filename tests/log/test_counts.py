"""What several processes count, on a real server: each knows what all have counted, and nobody waits for the dead."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from msgspec import Struct

from eventstore.connection import Connection, NatsAddress
from eventstore.counts import SUBJECT, Ages, Counts, counting
from eventstore.server import EmbeddedServer
from tests.log.logs import SOON_S, stopped, until


class Book:
    """What a process heard of the others; its own past is of one key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard = Counter[str]()
        self.told: dict[str, Ages] = {}

    def on_counted(self, key: str, number: int) -> None:
        self.heard[key] += number

    def past(self) -> Iterator[tuple[str, Ages]]:
        for n in range(1_200):
            yield f"{self.name}-{n}", [(float(n), 1), (0.0, n)]

    def on_past(self, key: str, ages: Ages) -> None:
        self.told[key] = ages


class Counting(Struct):
    """One process: what it counts, and what it heard of the others."""

    counts: Counts
    book: Book
    connection: Connection

    @property
    def heard(self) -> Counter[str]:
        return self.book.heard

    def count(self, key: str, number: int = 1) -> None:
        self.counts.count(key, number)


@asynccontextmanager
async def process(nats: NatsAddress, name: str) -> AsyncGenerator[Counting]:
    book = Book(name)
    connection = await Connection.open(nats, name)
    try:
        async with counting(connection, name, book) as counts:
            yield Counting(counts, book, connection)
    finally:
        await connection.close()


@asynccontextmanager
async def processes(nats: NatsAddress, number: int) -> AsyncGenerator[list[Counting]]:
    """So many, all of which know of each other."""
    async with AsyncExitStack() as stack:
        some = [await stack.enter_async_context(process(nats, f"process-{n}")) for n in range(number)]
        await until(lambda: all(one.counts.others == number - 1 for one in some))
        yield some


async def test_each_hears_what_the_others_count(nats_address: NatsAddress):
    async with processes(nats_address, 3) as (one, two, three):
        for n in range(100):
            one.count("a")
            two.count(f"b{n}", 2)
        two.count("a", -1)
        await until(lambda: three.heard["a"] == 99 and three.heard["b99"] == 2)
        assert three.heard.total() == 100 + 200 - 1
        await until(lambda: one.heard.total() == 199 and two.heard.total() == 100)


async def test_once_all_know_nothing_is_unknown(nats_address: NatsAddress):
    async with processes(nats_address, 3) as some:
        one = some[0]
        for _ in range(20):
            one.count("a")
            one.count("b", 5)
            assert (one.counts.unknown("a"), one.counts.unknown("b")) == (1, 5)
            await one.counts.known()
            assert (one.counts.unknown("a"), one.counts.unknown("b")) == (0, 0)
        assert [other.heard for other in some[1:]] == [Counter(a=20, b=100)] * 2


async def test_what_others_counted_before_they_knew_is_known_here(nats_address: NatsAddress):
    async with processes(nats_address, 2) as (one, two):
        for n in range(50):
            two.count("a")
            one.count("a")
            await one.counts.known()
            assert one.heard["a"] >= n + 1


async def test_one_that_comes_late_waits_for_none_of_what_was_said_before(nats_address: NatsAddress):
    async with processes(nats_address, 2) as (one, two):
        one.count("a", 100)
        await one.counts.known()
        async with process(nats_address, "late") as late:
            await until(lambda: one.counts.others == two.counts.others == late.counts.others == 2)
            late.count("a")
            await late.counts.known()
            one.count("a")
            await one.counts.known()
            assert (late.heard["a"], one.heard["a"]) == (1, 1)
        await until(lambda: one.counts.others == two.counts.others == 1)


async def test_one_that_begins_is_told_by_one_what_was_counted_before(nats_address: NatsAddress):
    async with processes(nats_address, 3) as some:
        async with process(nats_address, "late") as late:
            await until(lambda: len(late.book.told) == 1_200)
        assert late.book.told == dict(some[0].book.past())


async def test_who_is_alone_waits_for_nobody(nats_address: NatsAddress):
    async with process(nats_address, "one") as one:
        one.count("a")
        assert one.counts.unknown("a") == 0
        await one.counts.known()


async def test_who_does_not_answer_is_left_out_until_it_speaks_again(nats_address: NatsAddress):
    async with processes(nats_address, 2) as (one, two):
        await two.connection.client._flush_pending(force_flush=True)  # pyright: ignore[reportPrivateUsage]  # so that nothing of it is on its way
        deaf = await Connection.open(nats_address, "deaf")
        await deaf.publish(SUBJECT, b"\x82\xa7process\xa4deaf\xa6number\x00")
        await until(lambda: one.counts.others == 2)
        one.count("a")
        await one.counts.known()
        assert one.counts.others == 1
        assert two.heard["a"] == 1
        await deaf.publish(SUBJECT, b"\x82\xa7process\xa4deaf\xa6number\x00")
        await until(lambda: one.counts.others == 2)
        await deaf.close()


async def test_what_is_no_word_is_passed_over(nats_address: NatsAddress):
    async with processes(nats_address, 2) as (one, two):
        for junk in (b"", b"{}", b"\xff", b"\x81\xa7process\x01", b"\x90"):
            await two.connection.publish(SUBJECT, junk)
        two.count("a")
        await two.counts.known()
        assert one.heard["a"] == 1


async def test_without_a_server_each_counts_by_itself_and_with_it_together_again(server: EmbeddedServer):
    async with processes(server.address, 2) as (one, two):
        with stopped(server):
            one.count("a")
            async with asyncio.timeout(SOON_S):
                await one.counts.known()
            assert (one.counts.others, one.counts.unknown("a")) == (0, 0)
        await server.kill()
        await until(lambda: not one.connection.connected)
        assert one.counts.others == 0
        one.count("a")
        await server.restart()
        await until(lambda: one.counts.others == two.counts.others == 1)
        before = two.heard["a"]
        one.count("a")
        await one.counts.known()
        assert two.heard["a"] == before + 1


@pytest.mark.parametrize("number", [2, 3])
async def test_much_at_once_is_few_words(nats_address: NatsAddress, number: int):
    async with processes(nats_address, number) as some:
        for n in range(20_000):
            some[0].count(f"key-{n % 7_000}")
        await until(lambda: all(one.heard.total() == 20_000 for one in some[1:]))
