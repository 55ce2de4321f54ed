"""A revoked token with two API processes (two APIs in this one): refused by both, and its open streams end in both."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.local import Local, write_local
from eventstore.connection import NatsAddress
from eventstore.tokens import Scope
from tests.api import DEV, Api, running
from tests.log.logs import until
from tests.walk.terminal import environment, tasktrail
from tests.walk.wire import Wire

SCOPES: tuple[Scope, ...] = ("tasks:read", "audit")
Revoke = Callable[[Api, str, Path], Awaitable[None]]


async def by_command(api: Api, token_id: str, directory: Path) -> None:
    done = await tasktrail("tokens", "revoke", token_id, env=environment(TASKTRAIL_DATA_DIR=str(directory)))
    assert done.code == 0, done


async def over_http(api: Api, token_id: str, directory: Path) -> None:
    assert (await api.client.delete(f"/admin/tokens/{token_id}")).status_code == 204


async def opened(api: Api, path: str, accept: str, token: str) -> Wire:
    """A stream, once the task's first fact has come by it."""
    wire = await Wire.ask(api.url, path, {"Accept": accept, "Authorization": f"Bearer {token}"})
    assert (await wire.head()).status == 200
    await said(wire, b"task.created")
    return wire


async def said(wire: Wire, word: bytes) -> None:
    """Return once this was said."""
    text = b""
    while word not in text:
        more = await wire.chunk()
        assert more, "it came to its end"
        text += more


async def broken(wire: Wire) -> None:
    """Return once it is broken off."""
    _, ended = await wire.rest()
    await wire.close()
    assert not ended


@pytest.mark.parametrize("revoke", [by_command, over_http])
async def test_a_revoked_token_is_refused_and_its_streams_end_in_every_process(
    nats_address: NatsAddress, tmp_path: Path, revoke: Revoke
):
    write_local(tmp_path, Local(token="tt_dev", nats=nats_address))
    async with running(nats_address) as one, running(nats_address) as other:
        made = await one.rooms.tokens.add("tt_short", DEV, SCOPES)
        task_id = await one.begin()
        paths = [
            (f"/tasks/{task_id}/events", "text/event-stream"),
            ("/events", "text/event-stream"),
            ("/events?follow=true", "application/x-ndjson"),
        ]
        hers = [await opened(api, *path, "tt_short") for api in (one, other) for path in paths]
        mine = [await opened(api, *path, "tt_dev") for api in (one, other) for path in paths]
        await revoke(one, made.id, tmp_path)
        async with asyncio.timeout(10):
            await asyncio.gather(*map(broken, hers))
        for api in (one, other):
            assert api.metric("streams_cut_total", why="token_changed") == len(paths)
            for path, accept in paths:
                headers = {"Accept": accept, "Authorization": "Bearer tt_short"}
                assert (await api.client.get(path, headers=headers)).status_code == 401
        await one.client.post(f"/tasks/{task_id}/messages", json={"text": "still there"})
        for wire in mine:
            await said(wire, b"still there")
            await wire.close()


async def test_a_stream_that_begins_just_as_its_token_changes_ends_when_the_changed_one_does(nats_address: NatsAddress):
    async with running(nats_address) as api:
        revocations, now = api.rooms.revocations, datetime.now(UTC)
        await api.rooms.tokens.add("tt_short", DEV, SCOPES, expires_at=now + timedelta(hours=1))
        before = await api.rooms.bearers.authenticate("tt_short")
        await api.rooms.tokens.all()
        first, second = list[str](), list[str]()
        revocations.watch(before, first.append)
        await api.rooms.tokens.add("tt_short", DEV, SCOPES, expires_at=now + timedelta(seconds=1))
        await until(lambda: first == ["token_changed"])
        after = await api.rooms.bearers.authenticate("tt_short")
        revocations.watch(after, second.append)  # before the first gave its place back
        await until(lambda: second == ["token_expired"])
        revocations.unwatch(before, first.append)
        revocations.unwatch(after, second.append)
        assert first == ["token_changed"]
