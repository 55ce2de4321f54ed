"""One task, watched through every vendor's API and our own at once: all of them tell one life, each in its words."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal
from uuid import UUID

import httpx
import pytest
from msgspec import Struct

from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from eventstore.tokens import Dialect
from tests.dialects.nanonets import Nanonets, speaking
from tests.worker.house import SOON_S

Words = dict[str, str]
WORDS: dict[str, Words] = {
    "pending": {"niyra": "pending", "shannon": "TASK_STATUS_QUEUED", "nanonets": "pending"},
    "queued": {"niyra": "pending", "shannon": "TASK_STATUS_QUEUED", "nanonets": "queued"},
    "running": {"niyra": "running", "shannon": "TASK_STATUS_RUNNING", "nanonets": "running"},
    "waiting_for_input": {"niyra": "running", "shannon": "TASK_STATUS_RUNNING", "nanonets": "waiting_for_input"},
    "completed": {"niyra": "complete", "shannon": "TASK_STATUS_COMPLETED", "nanonets": "completed"},
}
AGAIN = {"niyra": "running", "shannon": "TASK_STATUS_RUNNING", "nanonets": "running"}
"""Of what waits to be run again."""


@pytest.fixture
async def nanonets(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Nanonets]:
    async with speaking(nats_address, tmp_path) as nanonets:
        yield nanonets


class Watched(Struct):
    """All that one watcher was told, each once, by the task's version."""

    told: dict[int, dict[str, Json]]


async def watch(client: httpx.AsyncClient, url: str, headers: dict[str, str], ended: frozenset[str]) -> Watched:
    """Poll until the task has ended, by ETag."""
    watched, known = Watched({}), ""
    async with asyncio.timeout(SOON_S):
        while True:
            answer = await client.get(url, headers=headers | ({"If-None-Match": known} if known else {}))
            if answer.status_code == 200:
                known = answer.headers["ETag"]
                body: dict[str, Json] = answer.json()
                watched.told[int(known.strip('"'))] = body
                if body["status"] in ended:
                    return watched
            await asyncio.sleep(0.01)


async def test_one_life_is_told_truly_by_all(nanonets: Nanonets):
    client = nanonets.api.client
    steps: list[Json] = [{"say": "Hello. ", "takes": 0.3}, {"tool": "search", "takes": 0.2}, {"ask": "For whom?"}]
    task_id = await nanonets.run(*steps, {"sleep": 0.2}, {"complete": "For {answer}."})
    bearer, key = nanonets.api.bearer, {"X-API-Key": nanonets.api.token, "Authorization": ""}
    urls: dict[Literal["native", "niyra", "shannon", "nanonets"], tuple[str, dict[str, str], str]] = {
        "native": (f"/tasks/{task_id}", bearer, "completed"),
        "niyra": (f"/v1/public/tasks/task_{task_id}", bearer, "complete"),
        "shannon": (f"/api/v1/tasks/task_{task_id}", key, "TASK_STATUS_COMPLETED"),
        "nanonets": (f"/api/v1/tasks/{task_id}", bearer, "completed"),
    }
    watching = {
        name: asyncio.ensure_future(watch(client, url, headers, frozenset({end})))
        for name, (url, headers, end) in urls.items()
    }
    await nanonets.reach(task_id, "waiting_for_input")
    await nanonets.say(task_id, "Ann")
    watched = {name: (await told).told for name, told in watching.items()}
    events = (await client.get(f"/tasks/{task_id}/events", params={"limit": 1000})).json()["data"]
    states = {
        event["version"]: (await client.get(f"/tasks/{task_id}?at={event['sequence']}")).json() for event in events
    }
    for name, told in watched.items():
        for version, body in told.items():
            then = states[version]
            again = then["status"] == "pending" and then["started_at"] is not None
            words = AGAIN if again else WORDS[then["status"]]
            assert body["status"] == (then["status"] if name == "native" else words[name]), (name, version)
    last = {name: told[max(told)] for name, told in watched.items()}
    assert {max(told) for told in watched.values()} == {len(events)}
    assert {UUID(str(body["task_id"]).removeprefix("task_")) for body in last.values()} == {UUID(task_id)}
    assert last["native"]["result"] == last["niyra"]["result"] == last["shannon"]["result"] == "For Ann."
    assert (await nanonets.get(task_id, "/summary")).json()["summary"] == "For Ann."
    assert last["niyra"]["tools_used"] == last["native"]["tools_used"] == ["search"]
    ended = {str(body.get("completed_at") or body.get("ended_at") or body["updated_at"]) for body in last.values()}
    assert len({moment[:23].rstrip("Z") for moment in ended}) == 1, "all know the same end"


async def test_the_same_id_on_the_same_path_is_told_in_the_words_of_the_credential(nanonets: Nanonets):
    api, url = nanonets.api, nanonets.api.url
    named: dict[str, Dialect | None] = {"sk_plain": None, "sk_shannon": "shannon", "sk_nanonets": "nanonets"}
    for token, dialect in named.items():
        await api.rooms.tokens.add(token, Owner("dev"), ("tasks:read", "tasks:write"), dialect=dialect)
    task_id = await nanonets.run({"ask": "For whom?"})
    await nanonets.reach(task_id, "waiting_for_input")
    theirs, ours = "TASK_STATUS_RUNNING", "waiting_for_input"
    async with httpx.AsyncClient(base_url=url) as client:
        for headers, status in (
            ({"X-API-Key": "sk_plain"}, theirs),
            ({"Authorization": "Bearer sk_plain"}, ours),
            ({"X-API-Key": "sk_plain", "Authorization": "Bearer sk_plain"}, theirs),
            ({"Authorization": "Bearer sk_shannon"}, theirs),
            ({"X-API-Key": "sk_nanonets"}, ours),
        ):
            for written in (task_id, f"task_{task_id}"):
                body = (await client.get(f"/api/v1/tasks/{written}", headers=headers)).json()
                assert body["status"] == status, headers
                assert UUID(body["task_id"].removeprefix("task_")) == UUID(task_id)
            page = (await client.get("/api/v1/tasks", headers=headers)).json()
            assert ("tasks" in page, "data" in page) == (status == theirs, status == ours)
        # What only one of them has is that one's, whatever the credential.
        shannon, bearer = {"X-API-Key": "sk_plain"}, {"Authorization": "Bearer sk_plain"}
        assert (await client.get(f"/api/v1/tasks/{task_id}/messages", headers=shannon)).json()["data"]
        paused = await client.post(f"/api/v1/tasks/{task_id}/pause", headers=bearer)
        assert (paused.status_code, paused.json()["success"]) == (202, True)
        assert (await nanonets.get(task_id)).json()["status"] == "running"
        stopped = await client.post(f"/api/v1/tasks/{task_id}/cancel", headers=shannon)
        assert (stopped.status_code, stopped.json()["success"]) == (202, True)
        again = await client.post(f"/api/v1/tasks/{task_id}/cancel", headers=bearer)
        assert (again.status_code, again.json()["status"]) == (200, "stopped")
        # Who shows nothing is refused in Shannon's words; what is ours stays ours.
        nobody = await client.get(f"/api/v1/tasks/{task_id}")
        assert nobody.status_code == 401
        assert nobody.headers["Content-Type"] == "application/json"
        assert (await client.get("/health/live")).json() == {"status": "ok", "problems": []}
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/nothing", headers=bearer)).headers["Content-Type"] == "application/problem+json"
