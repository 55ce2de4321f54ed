"""The house that the worker's tests live in."""

from collections.abc import AsyncGenerator

import pytest

from eventstore.connection import NatsAddress
from tests.worker.house import House, opened


@pytest.fixture
async def house(nats_address: NatsAddress) -> AsyncGenerator[House]:
    """On any NATS, empty."""
    async with opened(nats_address) as house:
        yield house
