"""A whole deployment that speaks Shannon."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from msgspec import Struct

from app.agents.agent import Agent
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.api import Api
from tests.dialects.deployment import at_work
from tests.worker.house import SOON_S

PREFIX = "/shannon"
TASKS = f"{PREFIX}/api/v1/tasks"
ENDED = ("TASK_STATUS_COMPLETED", "TASK_STATUS_FAILED", "TASK_STATUS_CANCELLED", "TASK_STATUS_TIMEOUT")


class Shannon(Struct):
    """What a client of the vendor's speaks to."""

    api: Api

    @property
    def address(self) -> str:
        """What the vendor's clients are given as the address."""
        return self.api.url + PREFIX

    async def submit(
        self, *steps: Json, query: str = "x", context: dict[str, Json] | None = None, **more: Json
    ) -> httpx.Response:
        """With these steps as the context's scenario, where there are any."""
        scenario: dict[str, Json] = {"scenario": {"steps": list(steps)}} if steps else {}
        body = {"query": query, "context": scenario | (context or {}), **more}
        return await self.api.client.post(TASKS, json=body)

    async def begun(self, *steps: Json, query: str = "x", context: dict[str, Json] | None = None, **more: Json) -> str:
        """The id of a task that was submitted."""
        answer = await self.submit(*steps, query=query, context=context, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["task_id"])

    async def get(self, task_id: str) -> dict[str, Json]:
        answer = await self.api.client.get(f"{TASKS}/{task_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, task_id: str, what: str, **body: Json) -> httpx.Response:
        """`cancel`, `pause` ..."""
        return await self.api.client.post(f"{TASKS}/{task_id}/{what}", json=body)

    async def until(self, task_id: str, *statuses: str) -> dict[str, Json]:
        """The body once the task has (one of) these statuses of our own API."""
        async with asyncio.timeout(SOON_S):
            headers = dict[str, str]()
            while True:
                answer = await self.api.client.get(f"/tasks/{task_id}", headers=headers)
                if answer.status_code == 200 and answer.json()["status"] in statuses:
                    return await self.get(task_id)
                headers = {"Prefer": "wait=10", "If-None-Match": answer.headers["ETag"]}

    async def ended(self, task_id: str) -> dict[str, Json]:
        """The body once the task has ended."""
        return await self.until(task_id, "completed", "failed", "cancelled", "timed_out")


@asynccontextmanager
async def speaking(
    nats: NatsAddress, tmp_path: Path, http: HttpSettings | None = None, *, agents: Sequence[Agent] = ()
) -> AsyncGenerator[Shannon]:
    """While the context lasts."""
    async with at_work(nats, tmp_path, http, agents=agents) as api:
        yield Shannon(api)
