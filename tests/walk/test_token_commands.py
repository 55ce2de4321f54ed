"""Access tokens from the command line: made, listed, revoked, straight in the bucket."""

import asyncio
import json
from pathlib import Path

import click
import httpx
import pytest

from app.local import Local, write_local
from app.token_commands import LimitType, limits_told
from eventstore.connection import Connection, NatsAddress
from eventstore.tokens import Plan, Tokens
from tests.api import running
from tests.walk.terminal import Said, environment, tasktrail


async def status_with(url: str, token: str) -> int:
    async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": token}) as client:
        return (await client.get("/agents")).status_code


async def test_a_token_is_printed_once_works_is_listed_and_revoked(nats_address: NatsAddress, tmp_path: Path) -> None:
    write_local(tmp_path, Local(token="tt_dev", nats=nats_address))
    env = environment(TASKTRAIL_DATA_DIR=str(tmp_path))
    async with running(nats_address) as api:
        asked = ["--owner", "Ann.B", "--scopes", "tasks:write, tasks:read", "--expires", "30d", "--note", "for ci"]
        asked += ["--dialect", "shannon"]
        made = await tasktrail("tokens", "create", *asked, env=env)
        assert made.code == 0, made
        token = made.out.removesuffix("\n")
        assert token.startswith("tt_")
        assert token not in made.err
        assert await status_with(api.url, token) == 200

        listed, as_json = await asyncio.gather(
            tasktrail("tokens", "list", env=env), tasktrail("tokens", "list", "--json", env=env)
        )
        heads, dev, row = listed.out.splitlines()
        assert heads.split() == ["ID", "OWNER", "SCOPES", "DIALECT", "CREATED", "EXPIRES", "LIMITS", "NOTE"]
        assert "  never" in dev
        assert dev.split()[-1] == "none"
        assert row.split()[2:4] == ["tasks:read,tasks:write", "shannon"]
        assert row.endswith("  for ci")
        assert token not in listed.out + as_json.out
        known = [json.loads(one) for one in as_json.out.splitlines()]
        assert [one["note"] for one in known] == ["", "for ci"]
        assert [one["dialect"] for one in known] == [None, "shannon"]
        assert known == (await api.client.get("/admin/tokens")).json()["data"]

        token_id = row.split()[0]
        revoked = await tasktrail("tokens", "revoke", token_id, "--nats-url", nats_address.url, env=environment())
        assert revoked.code == 0, revoked
        assert await status_with(api.url, token) == 401
        again = await tasktrail("tokens", "revoke", token_id, env=env)
        assert again == Said(1, "", f"there is no token {token_id!r}; `tasktrail tokens list` shows them\n")


async def test_on_an_empty_nats_a_token_can_be_made_first(nats_address: NatsAddress) -> None:
    env = environment(TASKTRAIL_NATS_URL=nats_address.url)
    limited = ["--multiplier", "3", "--limit", "native=2", "--limit", "shannon.day=7"]
    made = await tasktrail("tokens", "create", "--owner", "ann", "--scopes", "admin", *limited, env=env)
    assert made.code == 0, made
    connection = await Connection.open(nats_address, "test")
    bucket = await Tokens.open(connection)
    found = await bucket.find(made.out.strip())
    assert found is not None
    assert (found.owner, found.scopes, found.expires_at) == ("ann", ("admin",), None)
    assert found.plan == Plan(multiplier=3, limits={"native": 2, "shannon.day": 7})
    assert limits_told(found.plan) == "x3 native=2 shannon.day=7"
    await bucket.close()
    await connection.close()


@pytest.mark.parametrize("wrong", ["niyra=5", "native", "native=", "native=0", "native=-1", "native=1e3", "=5", ""])
def test_what_is_no_limit_is_told_what_there_is(wrong: str) -> None:
    with pytest.raises(click.BadParameter, match="write NAME=NUMBER, of native, "):
        LimitType().convert(wrong, None, None)


MISTAKES = [
    (["--owner", "ann", "--scopes", "tasks:reed"], "no scope 'tasks:reed'; there are: tasks:read,"),
    (["--owner", "ann", "--scopes", ","], "at least one scope"),
    (["--owner", "ann", "--scopes", "admin", "--expires", "month"], "'month' is no length of time"),
    (["--owner", "ann", "--scopes", "admin", "--expires", "999999w"], "100 years at most"),
    (["--owner", "", "--scopes", "admin"], "an owner has"),
    (["--owner", "ann", "--scopes", "admin", "--dialect", "french"], "'french' is no dialect; there are: native,"),
    (["--scopes", "admin"], "--owner"),
    (["--owner", "ann", "--scopes", "admin", "--nats-url", "foo:bar"], "is no address of a NATS server"),
    (["--owner", "ann", "--scopes", "admin", "--nats-url", "nats://127.0.0.1:1"], "no NATS at"),
    (["--owner", "ann", "--scopes", "admin"], "no service is known in"),
    (
        ["--owner", "ann", "--scopes", "admin", "--unlimited", "--multiplier", "2", "--nats-url", "nats://127.0.0.1:1"],
        "--unlimited leaves nothing",
    ),
]


async def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    env = environment(TASKTRAIL_DATA_DIR=str(tmp_path))
    said = await asyncio.gather(*(tasktrail("tokens", "create", *words, env=env) for words, _ in MISTAKES))
    for one, (_, why) in zip(said, MISTAKES, strict=True):
        assert (one.code, one.out) == (2, ""), one
        assert why in one.err
