"""Tokens on a real server: hashed at rest, known everywhere at once, revoked everywhere within a second."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from eventstore.connection import Connection, NatsAddress
from eventstore.events import Owner
from eventstore.log import LogUnavailable
from eventstore.server import EmbeddedServer
from eventstore.tokens import MAX_TOKEN, SCOPES, Tokens, hashed, new_token
from tests.log.logs import ANN, SOON_S, stopped, until


@pytest.fixture
async def tokens(nats_address: NatsAddress) -> AsyncGenerator[Tokens]:
    """One process's tokens."""
    connection = await Connection.open(nats_address, "tests")
    tokens = await Tokens.open(connection)
    yield tokens
    await tokens.close()
    await connection.close()


@pytest.fixture
async def other(nats_address: NatsAddress, tokens: Tokens) -> AsyncGenerator[Tokens]:
    """Another process's."""
    connection = await Connection.open(nats_address, "tests")
    other = await Tokens.open(connection)
    yield other
    await other.close()
    await connection.close()


async def test_a_token_is_known_to_all_as_soon_as_it_is_made(tokens: Tokens, other: Tokens):
    for n in range(50):
        made = await tokens.add(f"tt_{n}", ANN, ("tasks:read",), note="for ann", dialect="shannon")
        assert await other.find(f"tt_{n}") == made
        assert await tokens.find(f"tt_{n}") == made
    assert await other.find("tt_50") is None


async def test_a_token_that_is_looked_up_before_the_tail_brings_it_has_not_changed(tokens: Tokens, other: Tokens):
    changed: list[str] = []
    known: list[str] = []
    other.on_change(changed.append)
    for n in range(100):
        heard = len(changed)
        await tokens.add(f"tt_{n}", ANN, ("tasks:read",))
        await other.find(f"tt_{n}")
        if len(changed) == heard:
            known.append(hashed(f"tt_{n}"))
    await other.all()
    assert set(known).isdisjoint(changed)


def all_bytes(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


async def test_what_is_stored_is_not_the_token(server: EmbeddedServer, tmp_path: Path):
    connection = await Connection.open(server.address, "tests")
    tokens = await Tokens.open(connection)
    secret = new_token()
    await tokens.add(secret, ANN, SCOPES)
    await tokens.add("a-token-of-my-own", ANN, SCOPES)
    await tokens.all()
    await tokens.close()
    await connection.close()
    await server.stop()
    stored = await asyncio.to_thread(all_bytes, tmp_path)
    assert hashed(secret).encode() in stored
    for word in (secret, secret[3:], secret[:20], "a-token-of-my-own"):
        assert word.encode() not in stored


async def test_a_revoked_token_is_forgotten_everywhere_within_a_second(tokens: Tokens, other: Tokens):
    made = await tokens.add("tt_a", ANN, ("tasks:read",))
    await tokens.add("tt_b", ANN, ("tasks:read",))
    assert len(await other.all()) == 2  # by now it has heard of their making
    assert await other.find("tt_a") == made
    changed: list[str] = []
    other.on_change(changed.append)
    assert await tokens.revoke(made.id) == made
    await until(lambda: changed == [hashed("tt_a")], 5)
    assert await other.find("tt_a") is None
    assert await tokens.find("tt_a") is None
    assert await other.find("tt_b") is not None
    assert await tokens.revoke(made.id) is None
    assert [token.id for token in await other.all()] == [hashed("tt_b")[:12]]


async def test_a_revoked_token_may_be_made_again(tokens: Tokens, other: Tokens):
    first = await tokens.add("tt_a", ANN, ("tasks:read",))
    await other.revoke(first.id)
    second = await tokens.add("tt_a", ANN, ("audit",))
    assert (second.id, second.scopes) == (first.id, ("audit",))
    await other.all()
    assert await other.find("tt_a") == await tokens.find("tt_a") == second


async def test_made_twice_is_made_once(tokens: Tokens, other: Tokens):
    changed: list[str] = []
    other.on_change(changed.append)
    first = await tokens.add("tt_a", ANN, ("tasks:read",))
    assert await other.add("tt_a", ANN, ("tasks:read",)) == first
    assert await tokens.all() == await other.all() == [first]
    assert changed == [hashed("tt_a")]
    wider = await other.add("tt_a", ANN, ("tasks:read", "tasks:write"))
    assert await tokens.all() == await other.all() == [wider]
    assert changed == [hashed("tt_a")] * 2


async def test_all_tokens_are_listed_oldest_first_and_without_themselves(tokens: Tokens, other: Tokens):
    made = [await tokens.add(f"tt_{n}", Owner(f"owner-{n}"), ("tasks:read",)) for n in range(5)]
    listed = await other.all()
    assert listed == made
    assert [token.id for token in listed] == [hashed(f"tt_{n}")[:12] for n in range(5)]
    assert "tt_" not in repr(listed)


async def test_an_expired_token_is_no_token(tokens: Tokens, other: Tokens):
    now = datetime.now(UTC)
    await tokens.add("tt_past", ANN, ("tasks:read",), expires_at=now - timedelta(seconds=1))
    soon = await tokens.add("tt_soon", ANN, ("tasks:read",), expires_at=now + timedelta(seconds=1))
    assert await other.find("tt_past") is None
    assert await other.find("tt_soon") == soon
    await until(lambda: datetime.now(UTC) >= now + timedelta(seconds=1))
    assert await other.find("tt_soon") is None
    assert len(await tokens.all()) == 2


async def test_what_can_be_no_token_is_not_looked_up(tokens: Tokens):
    for word in ("", "x" * (MAX_TOKEN + 1), "\u00ff\u0000", "*", ">", "tt_" + "." * 20):
        assert await tokens.find(word) is None


async def test_what_is_in_the_bucket_and_no_token_of_ours_is_passed_over(tokens: Tokens, nats_address: NatsAddress):
    connection = await Connection.open(nats_address, "tests")
    for key, value in ((hashed("tt_a"), b"{"), (hashed("tt_b"), b'{"id": 1}'), ("whatever", b"{}"), ("a.b", b"")):
        await connection.request(f"$KV.tokens.{key}", value)
    await connection.close()
    made = await tokens.add("tt_c", ANN, ("tasks:read",))
    assert await tokens.find("tt_a") is None
    assert await tokens.all() == [made]


async def find_until_it_fails(tokens: Tokens, word: str) -> None:
    while True:  # a process stops a moment after it is told to
        await tokens.find(word)


async def test_known_tokens_hold_while_the_server_is_away_and_unknown_ones_are_not_judged(server: EmbeddedServer):
    connection = await Connection.open(server.address, "tests")
    tokens = await Tokens.open(connection)
    made = await tokens.add("tt_a", ANN, ("tasks:read",))
    await tokens.all()
    with stopped(server):
        with pytest.raises(LogUnavailable):
            await find_until_it_fails(tokens, "tt_b")
        assert await tokens.find("tt_a") == made
    await server.kill()
    await server.restart()
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                assert await tokens.find("tt_b") is None
                break
            except LogUnavailable:
                continue
    assert await tokens.all() == [made]
    await tokens.close()
    await connection.close()


async def test_two_who_make_the_bucket_at_once_have_one(nats_address: NatsAddress):
    connections = await asyncio.gather(*[Connection.open(nats_address, "tests") for _ in range(5)])
    opened = await asyncio.gather(*[Tokens.open(connection) for connection in connections])
    made = await opened[0].add("tt_a", ANN, ("tasks:read",))
    assert [await one.find("tt_a") for one in opened] == [made] * 5
    for one, connection in zip(opened, connections, strict=True):
        await one.close()
        await connection.close()
