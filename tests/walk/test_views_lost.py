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


def remove(directory: Path, named: str = "views.db*") -> None:
    found = list(directory.glob(named))
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


async def until_carried(api: Api) -> None:
    await scrape_until(
        api, lambda shown: (shown.values("views_carried"), shown.values("views_lag_records")) == ([1], [0])
    )


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
        await until_carried(api)


@pytest.mark.parametrize("deleted", ["views.db", "views.db-wal", "views.db-shm", "views.db*"])
async def test_whichever_file_of_a_quiet_service_is_deleted_the_views_come_back(
    nats_address: NatsAddress, tmp_path: Path, deleted: str
) -> None:
    async with deployed(nats_address, f"sqlite:///{tmp_path / 'views.db'}") as api:
        ids = [await api.begin() for _ in range(3)]
        await until_listed(api, ids)
        remove(tmp_path, deleted)
        for _ in range(2):
            await listed(api)
        await until_listed(api, ids)  # nothing comes that would make anybody write
        ids.append(await api.begin())
        await until_listed(api, ids)
        await until_carried(api)
        await until_listed(api, ids)


async def test_a_spoilt_file_of_a_quiet_service_is_seen_and_deleting_it_is_all_there_is_to_do(
    nats_address: NatsAddress, tmp_path: Path
) -> None:
    async with deployed(nats_address, f"sqlite:///{tmp_path / 'views.db'}") as api:
        ids = [await api.begin() for _ in range(3)]
        await until_listed(api, ids)
        await until_carried(api)
        (tmp_path / "views.db").write_text("garbage\n")
        await scrape_until(api, lambda shown: shown.values("views_carried") == [0])
        await listed(api)
        assert (tmp_path / "views.db").read_text() == "garbage\n"
        (tmp_path / "views.db").unlink()
        await until_listed(api, ids)
        await until_carried(api)


async def test_tables_that_a_quiet_service_lost_are_made_anew(nats_address: NatsAddress, postgresql: Cluster) -> None:
    views_url = postgresql.new_database()
    async with deployed(nats_address, views_url) as api:
        ids = [await api.begin() for _ in range(3)]
        await until_listed(api, ids)
        await until_carried(api)
        await asyncio.to_thread(postgresql.forget, views_url)
        await until_listed(api, ids)


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
            await scrape_until(
                api,
                lambda shown: (
                    shown.values("views_lag_records", process="projector") == [7]
                    and shown.values("views_carried") == [0]
                ),
            )
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
