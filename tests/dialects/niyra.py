"""A whole deployment that speaks Niyra."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
from msgspec import Struct

from app.agents.agent import Agent
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from eventstore.tokens import Scope
from tests.api import NO_TLS, Api
from tests.dialects.deployment import at_work
from tests.worker.house import SOON_S

EXECUTE, ASK, TASKS = "/v1/public/execute", "/v1/public/ask", "/v1/public/tasks"


class Niyra(Struct):
    """What a client of the vendor's speaks to."""

    api: Api

    async def execute(self, *steps: Json, **more: Json) -> httpx.Response:
        """With a scenario for an instruction, where there is one."""
        instruction = {"instruction": scenario(*steps)} if steps else {}
        return await self.api.client.post(EXECUTE, json=instruction | more)

    async def ask(self, *steps: Json, **more: Json) -> httpx.Response:
        return await self.api.client.post(ASK, json={"question": scenario(*steps)} | more)

    async def poll(self, task_id: str) -> dict[str, Json]:
        answer = await self.api.client.get(f"{TASKS}/{task_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, task_id: str) -> dict[str, Json]:
        """The poll's body once it is terminal."""
        async with asyncio.timeout(SOON_S):
            while not (body := await self.poll(task_id))["terminal"]:
                await self.api.client.get(f"/tasks/{task_id}", headers={"Prefer": "wait=10"})
        return body

    async def waiting_for_input(self, count: int) -> list[str]:
        """The ids of the tasks whose agents ask something, once there are so many."""
        async with asyncio.timeout(SOON_S):
            while True:
                listed = (await self.api.client.get("/tasks?status=waiting_for_input")).json()["data"]
                if len(listed) >= count:
                    return [task["task_id"] for task in listed]
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def bearer(self, token: str, *scopes: Scope, owner: str = "dev") -> AsyncGenerator[httpx.AsyncClient]:
        """A client with a token of its own."""
        await self.api.rooms.tokens.add(token, Owner(owner), scopes)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=self.api.url, headers=headers, timeout=30, verify=NO_TLS) as client:
            yield client


def scenario(*steps: Json) -> str:
    """What makes the simulator play these steps."""
    return msgspec.json.encode({"steps": list(steps)}).decode()


@asynccontextmanager
async def speaking(
    nats: NatsAddress, tmp_path: Path, *, window_s: float = 60.0, agents: Sequence[Agent] = ()
) -> AsyncGenerator[Niyra]:
    """While the context lasts. Both windows are `window_s`."""
    http = HttpSettings(niyra_execute_window_s=window_s, niyra_ask_window_s=window_s)
    async with at_work(nats, tmp_path, http, agents=agents) as api:
        yield Niyra(api)
