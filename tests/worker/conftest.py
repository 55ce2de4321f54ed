"""The house that the worker's tests live in."""

from collections.abc import AsyncGenerator

import pytest

from eventstore.connection import Connection, NatsAddress
from eventstore.server import EmbeddedServer
from tests.worker.house import House, Place, opened


@pytest.fixture
async def house(nats_address: NatsAddress) -> AsyncGenerator[House]:
    """On any NATS, empty."""
    async with opened(nats_address) as house:
        yield house


@pytest.fixture
async def place(server: EmbeddedServer) -> AsyncGenerator[Place]:
    """A house on a server of its own, whose streams may be deleted."""
    async with opened(server.address) as house:
        archive = await Connection.open(server.archive_address, "tests")
        try:
            yield Place(house, archive, server)
        finally:
            await archive.close()
