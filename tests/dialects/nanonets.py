"""A whole deployment that speaks Nanonets: an API, a dispatcher with views, and a worker."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from msgspec import Struct

from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.api import Api, running
from tests.dialects.lists import until_listed
from tests.dialects.niyra import scenario
from tests.worker.house import SOON_S, opened

ROOT = "/api/v1"
RUN, TASKS, AGENTS = f"{ROOT}/agents/simulator/run", f"{ROOT}/tasks", f"{ROOT}/agents"


class Nanonets(Struct):
    """What a client of the vendor's speaks to."""

    api: Api

    async def run(self, *steps: Json, **more: Json) -> str:
        """The id of a new task that plays these steps."""
        answer = await self.api.client.post(RUN, json={"query": scenario(*steps)} | more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["task_id"])

    async def get(self, task_id: str, what: str = "") -> httpx.Response:
        """A route of one task."""
        return await self.api.client.get(f"{TASKS}/{task_id}{what}")

    async def say(self, task_id: str, text: str) -> httpx.Response:
        return await self.api.client.post(f"{TASKS}/{task_id}/message", json={"message": text})

    async def reach(self, task_id: str, *statuses: str) -> dict[str, Json]:
        """The poll's body once its status is one of these."""
        async with asyncio.timeout(SOON_S):
            while (body := (await self.get(task_id)).json())["status"] not in statuses:
                assert body["status"] not in ("completed", "failed", "stopped"), (
                    await self.get(task_id, "/result")
                ).text
                await self.api.client.get(f"/tasks/{task_id}", headers={"Prefer": "wait=1"})
        return body


@asynccontextmanager
async def speaking(nats: NatsAddress, tmp_path: Path, *, limit: int = 32) -> AsyncGenerator[Nanonets]:
    """While the context lasts; `limit` tasks of an agent run at once."""
    views_url = f"sqlite:///{tmp_path / 'views.sqlite'}"
    async with opened(nats) as house, running(nats, views_url=views_url) as api:
        house.dispatch(limit=limit, views_url=views_url)
        house.work()
        await until_listed(api, 0)
        yield Nanonets(api)
