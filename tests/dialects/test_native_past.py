"""`GET /tasks/{task_id}?at=`: a task as it was, to those who may see it, and a clear refusal of what is no past."""

import asyncio

import httpx

from app.dialects.native import render
from eventstore.events import TaskId
from projections.task import INITIAL, evolve
from tests.api import DEV, Api
from tests.dialects.test_native import is_problem
from tests.lifecycle.commands import complete, finish_step, produce, request_input, start_run
from tests.log.logs import new_task

NO_SEQUENCES = [
    "",
    "-1",
    "+1",
    "1.0",
    "1e3",
    "0x1",
    "1_0",
    "x",
    " 1",
    "1 ",
    "1-2",
    "None",
    "\u0661",
    "\uff11",
    "9" * 19,
    "1" * 5_000,
    "\0",
]


async def past(api: Api, task_id: TaskId, at: object, **headers: str) -> httpx.Response:
    return await api.client.get(f"/tasks/{task_id}", params={"at": str(at)}, headers=headers)


async def test_at_each_of_its_facts_a_task_is_what_they_tell(api: Api):
    life = [start_run(), finish_step(kind="tool", name="search"), produce("Hel", step=1), request_input(1)]
    task_id = await api.begin()
    for command in life:
        await api.begin()  # so that there are sequences between
        await api.tell(task_id, command)
    records = {one.sequence: one for one in await api.rooms.tasks.log.read(DEV, task_id)}
    task = INITIAL
    for at in range(1, max(records) + 1):
        task = evolve(task, records[at]) if at in records else task
        answer = await past(api, task_id, at)
        if task is INITIAL:
            is_problem(answer, 404, "not_found")
        else:
            assert (answer.status_code, answer.headers["ETag"]) == (200, f'"{task.version}"')
            assert answer.content == render(task, {})
    last = await past(api, task_id, max(records))
    assert last.content == (await api.client.get(f"/tasks/{task_id}")).content


async def test_the_past_may_be_kept_a_while_by_its_owner_alone(api: Api):
    task_id = await api.begin()
    await api.tell(task_id, start_run())
    answer = await past(api, task_id, 1)
    kept = await past(api, task_id, 1, **{"If-None-Match": '"1"'})
    assert (kept.status_code, kept.content, kept.headers["ETag"]) == (304, b"", '"1"')
    for one in (answer, kept):
        assert one.headers["Cache-Control"] == "private, max-age=3600"
        assert one.headers["Vary"] == "Authorization, X-API-Key"
    assert (await past(api, task_id, 2, **{"If-None-Match": '"1"'})).status_code == 200


async def test_the_past_is_not_waited_for(api: Api):
    task_id = await api.begin(start_run())
    async with asyncio.timeout(10):
        answer = await past(api, task_id, 1, Prefer="wait=60")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert "Preference-Applied" not in answer.headers


async def test_what_is_no_sequence_is_a_bad_request(api: Api):
    task_id = await api.begin()
    for at in NO_SEQUENCES:
        for whose in (task_id, new_task()):
            is_problem(await past(api, whose, at), 400, "bad_request")


async def test_the_future_is_a_bad_request_whoever_s_task_it_is(api: Api, stranger: httpx.AsyncClient):
    task_id = await api.begin(start_run())
    last = await api.rooms.tasks.log.last_sequence()
    assert (await past(api, task_id, last)).status_code == 200
    for at in (last + 1, 2**53, 10**18 - 1):
        mine = await past(api, task_id, at)
        is_problem(mine, 400, "bad_request")
        assert mine.json()["detail"] == f"at: the log's last sequence is {last}"
        for whose in (task_id, new_task()):
            assert (await stranger.get(f"/tasks/{whose}?at={at}")).content == mine.content


async def test_a_task_that_was_not_there_yet_is_told_from_none_by_nobody(api: Api, stranger: httpx.AsyncClient):
    await api.begin()
    task_id = await api.begin(start_run())
    none = await api.client.get(f"/tasks/{new_task()}")
    is_problem(none, 404, "not_found")
    for at in (0, 1, "01"):
        assert (await past(api, task_id, at)).content == none.content
    for at in (0, 1, 2, 3):
        for whose in (task_id, new_task(), "no.id>*"):
            hers = await stranger.get(f"/tasks/{whose}?at={at}")
            assert (hers.status_code, hers.content) == (404, none.content)


async def test_large_fields_are_whole_in_the_past_too_and_not_before_they_were_there(api: Api):
    large_input, large_result = "i" * 400_000, "r" * 400_000
    created = await api.client.post("/tasks", json={"input": large_input})
    task_id = TaskId(created.json()["task_id"])
    await api.tell(task_id, start_run(), complete(result=large_result))
    first, second, third = [(await past(api, task_id, at)).json() for at in (1, 2, 3)]
    assert [one["input"] == large_input for one in (first, second, third)] == [True] * 3
    assert (first["result"], second["result"], third["result"] == large_result) == (None, None, True)


async def test_the_past_needs_the_scope_and_the_token_of_the_present(api: Api):
    task_id = await api.begin()
    await api.rooms.tokens.add("tt_writes", DEV, ("tasks:write",))
    is_problem(await past(api, task_id, 1, Authorization="Bearer tt_writes"), 403, "not_allowed")
    is_problem(await past(api, task_id, 1, Authorization="Bearer wrong"), 401, "not_authenticated")
    is_problem(await past(api, task_id, 99, Authorization="Bearer wrong"), 401, "not_authenticated")
