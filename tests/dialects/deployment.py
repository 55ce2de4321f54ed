"""A whole deployment for the tests of a dialect: an API, a dispatcher with views, and a worker."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from app.agents.agent import Agent
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from tests.api import Api, running
from tests.dialects.lists import until_listed
from tests.worker.house import opened


@asynccontextmanager
async def at_work(
    nats: NatsAddress, tmp_path: Path, http: HttpSettings | None = None, *, agents: Sequence[Agent] = ()
) -> AsyncGenerator[Api]:
    """While the context lasts."""
    views_url = f"sqlite:///{tmp_path / 'views.sqlite'}"
    async with opened(nats) as house, running(nats, http=http, views_url=views_url) as api:
        house.dispatch(views_url=views_url)
        house.work(*agents)
        await until_listed(api, 0)
        yield api
