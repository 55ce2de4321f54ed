"""Lists on a whole deployment: all tasks are there, also while the views are built anew, and after they were lost."""

import asyncio
import json
from pathlib import Path

import httpx
import msgspec

from tests.dialects.lists import Listed
from tests.walk.serving import WITHIN_S, Serving, attempt, serving

TASKS = 30


async def all_pages(client: httpx.AsyncClient) -> Listed:
    """All that the API lists, 7 at a time."""
    query: dict[str, str | int] = {"limit": 7}
    found = Listed(data=[], has_more=True, next_cursor=None)
    while found.has_more:
        answer = await client.get("/tasks", params=query)
        assert answer.status_code == 200, answer.text
        page = msgspec.json.decode(answer.content, type=Listed)
        found = Listed(data=[*found.data, *page.data], has_more=page.has_more, next_cursor=page.next_cursor)
        if page.next_cursor is not None:
            query["cursor"] = page.next_cursor
    return found


async def until_all_have_ended(client: httpx.AsyncClient) -> None:
    """Return once the list says that all tasks have ended."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            answer = await client.get("/tasks", params={"status": "completed", "total": "true"})
            if answer.status_code == 200 and answer.json()["total"] == TASKS:
                return
            assert answer.status_code in (200, 503), answer.text
            await asyncio.sleep(0.05)


async def told_by_cli(data_dir: Path, *options: str) -> list[str]:
    code, out, err = await attempt("list", "--all", "--json", *options, "--data-dir", str(data_dir))
    assert (code, err) == (0, ""), err
    return [json.loads(line)["task_id"] for line in out.splitlines()]


async def asked_meanwhile(client: httpx.AsyncClient, rebuilding: asyncio.Future[tuple[int, str, str]]) -> int:
    """Ask for the list again and again, which always answers whole; how often."""
    asked = 0
    while not rebuilding.done():
        assert len((await all_pages(client)).ids) == TASKS
        asked += 1
    return asked


async def agree(service: Serving, data_dir: Path, ids: list[str]) -> None:
    """Assert that API and command line list these, newest first."""
    async with service.client() as client:
        assert (await all_pages(client)).ids == list(reversed(ids))
    assert await told_by_cli(data_dir) == list(reversed(ids))


async def test_thirty_tasks_are_listed_while_views_are_rebuilt_and_after_they_were_deleted(tmp_path: Path):
    data_dir = tmp_path / "data & 100%"  # whatever a directory may be called
    ids: list[str] = []
    async with serving(data_dir) as service:
        async with service.client() as client:
            for number in range(TASKS):
                answer = await client.post("/tasks", json={"title": f"number {number}", "input": "hello"})
                assert answer.status_code == 201, answer.text
                ids.append(answer.json()["task_id"])
            await until_all_have_ended(client)
            await agree(service, data_dir, ids)
            shown = await attempt("list", "--limit", "3", "--q", "NUMBER 1", "--data-dir", str(data_dir))
            assert shown[0] == 0
            assert [line.split()[0] for line in shown[1].splitlines()] == ["ID", *list(reversed(ids[10:20]))[:3]]
            assert shown[2] == "there are more: --all lists them too\n"
            assert await told_by_cli(data_dir, "--created-after", "2026-01-31", "--created-before", "2026-02-01") == []
            every_status = ("--status", "completed", "--status", "pending,queued,running")
            assert await told_by_cli(data_dir, *every_status) == list(reversed(ids))
            refused = await attempt("list", "--status", "sleeping", "--data-dir", str(data_dir))
            assert (refused[0], "there is no 'sleeping'" in refused[2]) == (1, True)
            rebuilding = asyncio.ensure_future(attempt("views", "rebuild", "--data-dir", str(data_dir)))
            assert await asked_meanwhile(client, rebuilding) > 0
            code, out, err = await rebuilding
            assert (code, err) == (0, ""), err
            assert "the views are built anew: " in out
            await agree(service, data_dir, ids)
            late = (
                await client.post("/tasks", json={"title": "after the switch"}, headers={"Prefer": "wait=20"})
            ).json()
            ids.append(late["task_id"])
            async with asyncio.timeout(WITHIN_S):
                while len((await all_pages(client)).ids) < len(ids):  # noqa: ASYNC110  # another process writes them
                    await asyncio.sleep(0.05)
        assert await service.stop() == 0
    for file in data_dir.glob("views.sqlite*"):
        file.unlink()
    async with serving(data_dir) as service:
        assert await told_by_cli(data_dir, "--retry-for", "20") == list(reversed(ids))
        await agree(service, data_dir, ids)


async def test_a_rebuild_says_what_it_lacks_in_one_line(tmp_path: Path):
    code, _, err = await attempt("views", "rebuild", "--data-dir", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1), err
    code, _, err = await attempt("views", "rebuild", "--views-url", "mysql://x", "--data-dir", str(tmp_path))
    assert code == 2
    assert "SQLite or PostgreSQL" in err
