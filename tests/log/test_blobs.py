"""Blobs: whole or not at all, by name, in memory and in the object store."""

import asyncio
import os

import pytest

from eventstore.blobs import MAX_BLOB
from eventstore.connection import NatsAddress
from eventstore.log import EventLog, TooLarge
from eventstore.server import EmbeddedServer
from tests.log.logs import jetstream


async def test_a_name_that_was_never_stored_has_no_bytes(log: EventLog):
    assert await log.blobs.get("missing") is None


@pytest.mark.parametrize("size", [0, 1, 128 * 1024, 128 * 1024 + 1, 3 * 1024 * 1024])
async def test_a_blob_comes_back_as_it_was(log: EventLog, size: int):
    content = os.urandom(size)
    await log.blobs.put("some.name *>", content)
    assert await log.blobs.get("some.name *>") == content


async def test_storing_the_same_again_changes_nothing(log: EventLog):
    content = os.urandom(200_000)
    await asyncio.gather(*[log.blobs.put("name", content) for _ in range(4)])
    await log.blobs.put("name", content)
    assert await log.blobs.get("name") == content


async def test_a_blob_is_never_seen_half_stored(log: EventLog):
    content = os.urandom(4 * 1024 * 1024)
    storing = asyncio.ensure_future(log.blobs.put("name", content))
    while not storing.done():
        assert await log.blobs.get("name") in (None, content)
        await asyncio.sleep(0.001)
    assert await log.blobs.get("name") == content


async def test_a_blob_that_is_too_large_is_refused(nats_address: NatsAddress):
    async with jetstream(nats_address) as log:
        with pytest.raises(TooLarge):
            await log.blobs.put("name", bytes(MAX_BLOB + 1))
        assert await log.blobs.get("name") is None


async def test_blobs_survive_a_killed_server(server: EmbeddedServer):
    content = os.urandom(1024 * 1024)
    async with jetstream(server.address) as log:
        await log.blobs.put("name", content)
        await server.kill()
        await server.restart()
        assert await log.blobs.get("name") == content
