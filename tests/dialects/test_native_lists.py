"""`GET /tasks` over HTTP, with a projector beside it: every filter, every page, and nobody else's tasks."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest

from app.commands import CancelTask
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from projections.views_errors import ViewsUnavailable
from tests.api import DEV, Api, running
from tests.dialects.lists import Listed, carried, until_listed
from tests.dialects.test_native import is_problem
from tests.lifecycle.commands import complete, start_run
from tests.log.logs import SOON_S


@pytest.fixture
def views_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'views.sqlite'}"


@pytest.fixture
async def api(nats_address: NatsAddress, views_url: str) -> AsyncGenerator[Api]:
    """An API with lists, and a projector that carries the views."""
    async with carried(nats_address, views_url), running(nats_address, views_url=views_url) as api:
        yield api


async def page(client: httpx.AsyncClient, **query: str | int) -> Listed:
    answer = await client.get("/tasks", params=query)
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Listed)


async def create(client: httpx.AsyncClient, **wishes: object) -> TaskId:
    answer = await client.post("/tasks", json=wishes)
    assert answer.status_code == 201, answer.text
    return TaskId(answer.json()["task_id"])


async def walk(client: httpx.AsyncClient, **query: str | int) -> list[str]:
    """All pages, one after the other."""
    found = await page(client, **query)
    ids = found.ids
    while found.next_cursor is not None:
        assert found.has_more
        found = await page(client, **query, cursor=found.next_cursor)
        ids += found.ids
    assert not found.has_more
    return ids


async def listed(api: Api) -> None:
    """Return once the lists hold all that is in the log now."""
    last = await api.rooms.tasks.log.last_sequence()
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                if await api.rooms.lists.checkpoint() >= last:
                    return
            except ViewsUnavailable:
                pass  # being built
            await asyncio.sleep(0.02)


async def test_tasks_are_listed_newest_first_as_each_of_them_reads(api: Api):
    ids = [await create(api.client, input=f"number {number}") for number in range(3)]
    await api.tell(ids[0], start_run(), complete())
    await listed(api)
    answer = await api.client.get("/tasks")
    bodies = [(await api.client.get(f"/tasks/{task_id}")).json() for task_id in reversed(ids)]
    assert answer.json() == {"data": bodies, "has_more": False, "next_cursor": None}


async def test_every_filter_leaves_out_the_rest(api: Api):
    waiting = await create(api.client, title="Tides of the North Sea", session_id="s-1")
    running = await create(api.client, input={"ask": "about WHALES"}, session_id="s-2")
    ended = await create(api.client, title="whales and tides")
    await api.tell(running, start_run())
    await api.tell(ended, CancelTask(by="ann"))
    await listed(api)

    async def found(**query: str | int) -> set[str]:
        return set((await page(api.client, **query)).ids)

    assert await found(status="pending") == {waiting}
    assert await found(status="running,cancelled") == {running, ended}
    assert await found(agent="simulator") == {waiting, running, ended}
    assert await found(agent="nobody") == set()
    assert await found(session_id="s-1") == {waiting}
    assert await found(q="tides") == {waiting, ended}
    assert await found(q="whales") == {running, ended}
    assert await found(q="whales", status="running", session_id="s-2", agent="simulator") == {running}
    middle = (await api.client.get(f"/tasks/{running}")).json()["created_at"]
    assert await found(created_after=middle) == {ended}
    assert await found(created_before=middle) == {waiting}
    in_another_zone = datetime.fromisoformat(middle).astimezone().isoformat()
    assert await found(created_after=in_another_zone) == {ended}
    later = (datetime.fromisoformat(middle) + timedelta(days=1)).isoformat()
    assert await found(created_after=later) == set()
    assert await found(colour="blue") == {waiting, running, ended}, "an unknown name is passed over"


async def test_a_total_is_counted_on_request(api: Api):
    for number in range(5):
        await create(api.client, title="odd" if number % 2 else "even")
    await listed(api)
    counted = await page(api.client, limit=2, total="true", q="even")
    assert (len(counted.data), counted.has_more, counted.total, counted.total_exact) == (2, True, 3, True)
    assert (await page(api.client, limit=2, total="false")).total is None


async def test_pages_have_no_gap_and_no_double_while_new_tasks_arrive(api: Api):
    ids = [await create(api.client) for _ in range(23)]
    await listed(api)
    found = await page(api.client, limit=5)
    seen = found.ids
    while found.next_cursor is not None:
        await create(api.client)
        await listed(api)
        found = await page(api.client, limit=5, cursor=found.next_cursor)
        seen += found.ids
    assert seen == list(reversed(ids))


async def test_another_owners_tasks_are_never_listed_whatever_is_asked(api: Api, stranger: httpx.AsyncClient):
    ours = [await create(api.client, title="a secret", session_id="s") for _ in range(4)]
    theirs = [await create(stranger, title="a secret", session_id="s") for _ in range(4)]
    await listed(api)
    for query in ({}, {"q": "secret"}, {"session_id": "s"}, {"status": "pending"}, {"agent": "simulator"}):
        assert await walk(stranger, limit=3, **query) == list(reversed(theirs))
        assert await walk(api.client, limit=3, **query) == list(reversed(ours))
        assert (await page(stranger, total="true", **query)).total == 4
    cursor = (await page(stranger, limit=1)).next_cursor
    assert cursor is not None
    assert await walk(api.client, cursor=cursor) == list(reversed(ours)), "a cursor is a place, and opens nothing"


async def test_large_fields_are_null_in_a_list_and_whole_in_the_task(api: Api):
    task_id = await create(api.client, input="x" * 400_000)
    await listed(api)
    (task,) = (await page(api.client)).data
    assert (task.task_id, task.input) == (task_id, None)
    assert (await api.client.get(f"/tasks/{task_id}")).json()["input"] == "x" * 400_000


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"status": "sleeping"}, "bad_request"),
        ({"status": "pending,"}, "bad_request"),
        ({"status": "absent"}, "bad_request"),
        ({"status": ""}, "bad_request"),
        ({"cursor": "nonsense"}, "bad_cursor"),
        ({"cursor": ""}, "bad_cursor"),
        ({"cursor": "dAAAAAAAAAAA"}, "bad_cursor"),
        ({"created_after": "yesterday"}, "bad_request"),
        ({"created_after": "2026-01-01T00:00:00"}, "bad_request"),
        ({"created_before": "2026-13-01T00:00:00Z"}, "bad_request"),
        ({"limit": "0"}, "bad_request"),
        ({"limit": "101"}, "bad_request"),
        ({"limit": "many"}, "bad_request"),
        ({"total": "perhaps"}, "bad_request"),
        ({"q": "x" * 201}, "bad_request"),
    ],
    ids=str,
)
async def test_what_cannot_be_understood_is_said(api: Api, query: dict[str, str], code: str):
    await listed(api)
    is_problem(await api.client.get("/tasks", params=query), 400, code)


async def test_what_is_wrong_is_said_in_words_of_http(api: Api):
    total, limit = [await api.client.get("/tasks", params=query) for query in ({"total": "1"}, {"limit": "abc"})]
    assert total.json()["detail"] == "total: there is no '1'; there are: true, false"
    assert [error["message"] for error in limit.json()["errors"]] == ["must be a whole number of 1 to 100"]


async def test_a_status_that_is_named_apart_is_meant_too(api: Api):
    running, ended, _ = [await api.begin(*life) for life in ((start_run(),), (CancelTask(by="dev"),), ())]
    await listed(api)
    answer = await api.client.get("/tasks?status=running&status=cancelled")
    assert {task["task_id"] for task in answer.json()["data"]} == {running, ended}


async def test_who_may_not_read_is_told_so(api: Api):
    await api.rooms.tokens.add("tt_writer", DEV, ("tasks:write",))
    headers = {"Authorization": "Bearer tt_writer"}
    is_problem(await api.client.get("/tasks", headers=headers), 403, "not_allowed")
    async with httpx.AsyncClient(base_url=api.url) as nobody:
        is_problem(await nobody.get("/tasks"), 401, "not_authenticated")


async def test_without_views_lists_say_so_and_tasks_go_on(nats_address: NatsAddress, tmp_path: Path):
    async with running(nats_address) as api:
        answer = await api.client.get("/tasks")
        is_problem(answer, 503, "views_unavailable")
        assert answer.headers["Retry-After"] == "1"
    not_yet = f"sqlite:///{tmp_path / 'views.sqlite'}"
    async with running(nats_address, views_url=not_yet) as api:
        answer = await api.client.get("/tasks", params={"total": "true"})
        is_problem(answer, 503, "views_unavailable")
        assert "views.sqlite" not in answer.text, "where the database is, is nobody's affair"
        task_id = await create(api.client)
        assert (await api.client.get(f"/tasks/{task_id}")).status_code == 200
        async with carried(nats_address, not_yet):
            await until_listed(api, 1)
        assert (await page(api.client)).ids == [task_id], "what was carried is read without a projector too"


async def test_a_database_that_is_away_is_waited_for_and_the_views_catch_up(nats_address: NatsAddress, tmp_path: Path):
    away = tmp_path / "away"
    views_url = f"sqlite:///{away / 'views.sqlite'}"
    async with carried(nats_address, views_url):
        away.mkdir()
        async with running(nats_address, views_url=views_url) as api:
            task_id = await create(api.client)
            await until_listed(api, 1)
            assert (await page(api.client)).ids == [task_id]


async def test_of_two_projectors_one_carries_and_the_other_takes_over(nats_address: NatsAddress, views_url: str):
    async with running(nats_address, views_url=views_url) as api, carried(nats_address, views_url):
        async with carried(nats_address, views_url):
            first = await create(api.client)
            await listed(api)
        second = await create(api.client)
        await listed(api)
        assert (await page(api.client)).ids == [second, first]
