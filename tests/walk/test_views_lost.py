"""The views' database is lost under everybody who has it open: they come back by themselves, and on-call sees it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.projecting import run_projector
from app.settings import AgentSettings, LogSettings, WorkerSettings
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from tests.api import Api, running
from tests.log.logs import SOON_S
from tests.projections.databases import Cluster
from tests.walk.test_metrics import beside, scrape_until

Lose = Callable[[], None]


@pytest.fixture
def lose(request: pytest.FixtureRequest, views_url: str, tmp_path: Path) -> tuple[Lose, Lose]:
    """What takes the database away, and what brings one back."""
    if views_url.startswith("sqlite"):
        return lambda: remove(tmp_path), lambda: None
    cluster: Cluster = request.getfixturevalue("postgresql")
    return lambda: cluster.stop(at_once=True), cluster.start


def remove(directory: Path) -> None:
    found = list(directory.glob("views.db*"))
    assert found
    for file in found:
        file.unlink()


@asynccontextmanager
async def deployed(nats: NatsAddress, views_url: str) -> AsyncGenerator[Api]:
    carried = run_projector(LogSettings(nats=nats), AgentSettings(), WorkerSettings(), views_url=views_url)
    async with running(nats, views_url=views_url) as api, beside(carried):
        yield api


async def listed(api: Api) -> list[TaskId] | None:
    """The ids, newest first; None: not now."""
    answer = await api.client.get("/tasks", params={"limit": 100})
    assert answer.status_code in (200, 503), answer.text
    if answer.status_code == 503:
        assert answer.json()["code"] == "views_unavailable"
        return None
    return [TaskId(task["task_id"]) for task in answer.json()["data"]]


async def until_listed(api: Api, ids: list[TaskId], at_least: int = 0) -> None:
    """Return once the list is whole. What it shows before may lack the newest, never what was there before the loss."""
    wanted = list(reversed(ids))
    async with asyncio.timeout(SOON_S):
        while (shown := await listed(api)) != wanted:
            assert shown is None or (len(shown) >= at_least and shown == wanted[len(wanted) - len(shown) :])
            await asyncio.sleep(0.02)


async def test_views_that_are_lost_in_mid_run_come_back_by_themselves(
    nats_address: NatsAddress, views_url: str, lose: tuple[Lose, Lose]
) -> None:
    taken_away, brought_back = lose
    async with deployed(nats_address, views_url) as api:
        ids = [await api.begin() for _ in range(5)]
        await until_listed(api, ids)
        for _ in range(2):
            known = len(ids)
            await asyncio.to_thread(taken_away)
            ids += [await api.begin() for _ in range(5)]
            for task_id in ids:
                assert (await api.client.get(f"/tasks/{task_id}")).status_code == 200
            await asyncio.to_thread(brought_back)
            await until_listed(api, ids, known)
        ids.append(await api.begin())
        await until_listed(api, ids)
        await scrape_until(
            api, lambda shown: (shown.values("views_carried"), shown.values("views_lag_records")) == ([1], [0])
        )


async def test_how_far_the_views_are_behind_is_seen_while_their_database_is_away(
    nats_address: NatsAddress, postgresql: Cluster
) -> None:
    views_url = postgresql.new_database()
    async with deployed(nats_address, views_url) as api:
        await until_listed(api, [await api.begin()])
        await asyncio.to_thread(postgresql.stop, at_once=True)
        try:
            for _ in range(7):
                await api.begin()
            await scrape_until(api, lambda shown: shown.values("views_lag_records", process="projector") == [7])
        finally:
            await asyncio.to_thread(postgresql.start)
        await scrape_until(api, lambda shown: shown.values("views_lag_records") == [0])


async def test_of_two_projectors_one_carries_the_views(nats_address: NatsAddress, tmp_path: Path) -> None:
    views_url = f"sqlite:///{tmp_path / 'views.db'}"
    other = run_projector(LogSettings(nats=nats_address), AgentSettings(), WorkerSettings(), views_url=views_url)
    async with deployed(nats_address, views_url) as api, beside(other):
        await scrape_until(
            api,
            lambda shown: sorted(shown.values("views_carried")) == [0, 1] and shown.values("views_lag_records") == [0],
        )
