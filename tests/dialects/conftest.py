"""The API that the native dialect's tests speak to."""

from collections.abc import AsyncGenerator

import httpx
import pytest

from eventstore.connection import NatsAddress
from eventstore.events import Owner
from tests.api import NO_TLS, Api, running


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


@pytest.fixture
async def stranger(api: Api) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of another owner, who may do everything to its own."""
    await api.rooms.tokens.add("tt_eve", Owner("eve"), ("tasks:read", "tasks:write"))
    async with httpx.AsyncClient(base_url=api.url, headers={"Authorization": "Bearer tt_eve"}, verify=NO_TLS) as client:
        yield client
