"""Views that are carried in this process, for tests that list tasks over HTTP."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
from msgspec import Struct

from app.dialects.native import TaskBody
from app.settings import LogSettings
from app.views import Carrier
from eventstore.connection import NatsAddress
from tests.api import Api
from tests.log.logs import SOON_S


class Listed(Struct):
    """A page, as a client reads it."""

    data: list[TaskBody]
    has_more: bool
    next_cursor: str | None
    total: int | None = None
    total_exact: bool | None = None

    @property
    def ids(self) -> list[str]:
        return [task.task_id for task in self.data]


@asynccontextmanager
async def carried(nats: NatsAddress, views_url: str) -> AsyncGenerator[None]:
    """A projector, while the context lasts."""
    carrying = asyncio.ensure_future(Carrier(LogSettings(nats=nats), views_url).run())
    try:
        yield
    finally:
        carrying.cancel()
        await asyncio.wait({carrying})


async def until_listed(api: Api, sequence: int, client: httpx.AsyncClient | None = None) -> None:
    """Return once lists are there and hold what the log had up to this sequence."""
    async with asyncio.timeout(SOON_S):
        while True:
            answer = await (client or api.client).get("/tasks", params={"limit": 1})
            if answer.status_code == 200:
                tasks = answer.json()["data"]
                if sequence == 0 or (tasks and tasks[0]["sequence"] >= sequence):
                    return
            await asyncio.sleep(0.02)
