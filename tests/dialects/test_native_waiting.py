"""`Prefer: wait` and `Idempotency-Key`: who waits is told at once, who repeats gets what there is already."""

import asyncio
from time import monotonic

import httpx

from app.commands import CancelTask
from tests.api import DEV, Api
from tests.dialects.test_native import is_problem
from tests.lifecycle.commands import complete, request_input, start_run
from tests.log.logs import until

LONG = 50
"""Seconds that a test says it would wait and never does."""


def waits(wait_s: object = LONG, **more: str) -> dict[str, str]:
    return {"Prefer": f"wait={wait_s}", **more}


async def newest(api: Api) -> str:
    """The id of the task made last, as soon as somebody waits for it."""
    tasks = api.rooms.tasks
    there = tasks.attached.held  # its maker still waits for the answer
    await until(lambda: any(one.task.version and one.pins for one in there.values()))
    return next(reversed(there.values())).task.task_id


async def test_a_post_that_waits_is_answered_at_the_end(api: Api):
    posting = asyncio.ensure_future(api.client.post("/tasks", json={}, headers=waits()))
    task_id = await newest(api)
    await api.client.post(f"/tasks/{task_id}/messages", json={"text": "an inbox is no end"})
    await api.client.post(f"/tasks/{task_id}/cancel")
    answer = await posting
    assert (answer.status_code, answer.json()["status"], answer.headers["ETag"]) == (201, "cancelled", '"3"')
    assert answer.headers["Preference-Applied"] == f"wait={LONG}"
    assert answer.headers["Location"] == f"/tasks/{task_id}"


async def test_a_post_that_waits_is_answered_when_somebody_has_to_do_something(api: Api):
    posting = asyncio.ensure_future(api.client.post("/tasks", json={}, headers=waits()))
    task_id = await newest(api)
    await api.client.post(f"/tasks/{task_id}/pause")
    assert (await posting).json()["status"] == "paused"


async def test_a_wait_that_is_over_gives_the_task_as_it_is(api: Api):
    answer = await api.client.post("/tasks", json={}, headers=waits(1))
    assert (answer.status_code, answer.json()["status"]) == (201, "pending")
    answer = await api.client.post("/tasks", json={}, headers=waits(0))
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (201, "wait=0")


async def test_who_wants_no_waiting_does_not_wait(api: Api):
    since = monotonic()
    for prefer in ("respond-async", "respond-async, wait=50", "wait=50; respond-async", "return=minimal", "wait=x"):
        answer = await api.client.post("/tasks", json={}, headers={"Prefer": prefer})
        assert (answer.status_code, answer.json()["version"]) == (201, 1)
        assert "wait" not in answer.headers.get("Preference-Applied", "")
    assert monotonic() - since < LONG / 2


async def test_no_wait_is_longer_than_a_minute(api: Api):
    task_id = await api.begin(CancelTask(by="ann"))
    answer = await api.client.get(f"/tasks/{task_id}", headers=waits(999999))
    assert answer.headers["Preference-Applied"] == "wait=60"


async def test_a_get_waits_for_a_change(api: Api):
    task_id = await api.begin()
    for known in ({}, {"If-None-Match": '"1"'}, {"If-None-Match": "*"}):
        version = (await api.client.get(f"/tasks/{task_id}")).json()["version"]
        known = {key: value.replace('"1"', f'"{version}"') for key, value in known.items()}
        polling = asyncio.ensure_future(api.client.get(f"/tasks/{task_id}", headers=waits(**known)))
        async with api.rooms.tasks.attach(DEV, task_id) as attached:
            # (A pin may be that of a leader being asked, before it is known what is waited for.)
            await until(lambda held=attached: bool(held._changed))  # pyright: ignore[reportPrivateUsage]  # it waits
        await api.client.post(f"/tasks/{task_id}/messages", json={"text": "x"})
        answer = await polling
        assert (answer.status_code, answer.json()["version"]) == (200, version + 1)


async def test_a_get_that_knows_an_older_version_does_not_wait(api: Api):
    task_id = await api.begin(start_run())
    since = monotonic()
    answer = await api.client.get(f"/tasks/{task_id}", headers=waits(**{"If-None-Match": '"1"'}))
    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert monotonic() - since < LONG / 2


async def test_nothing_new_by_the_end_of_the_wait_is_not_sent_again(api: Api):
    task_id = await api.begin()
    answer = await api.client.get(f"/tasks/{task_id}", headers=waits(1, **{"If-None-Match": '"1"'}))
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", '"1"')
    assert (await api.client.get(f"/tasks/{task_id}", headers=waits(1))).status_code == 200


async def test_an_ended_task_is_not_waited_for(api: Api):
    task_id = await api.begin(start_run(), complete())
    since = monotonic()
    assert (await api.client.get(f"/tasks/{task_id}", headers=waits())).status_code == 200
    same = await api.client.get(f"/tasks/{task_id}", headers=waits(**{"If-None-Match": '"3"'}))
    assert same.status_code == 304
    assert monotonic() - since < LONG / 2


async def test_a_hundred_who_wait_are_all_told(api: Api):
    task_id = await api.begin()
    polling = [asyncio.ensure_future(api.client.get(f"/tasks/{task_id}", headers=waits())) for _ in range(100)]
    async with api.rooms.tasks.attach(DEV, task_id) as attached:
        await until(lambda: attached.pins > 100)
    await api.tell(task_id, CancelTask(by="ann"))
    assert {(await one).json()["status"] for one in polling} == {"cancelled"}


async def test_a_repeated_post_gets_the_task_that_is_there(api: Api):
    wish = {"input": {"b": 1, "a": [2]}, "timeout_s": 60}
    first = await api.client.post("/tasks", json=wish, headers={"Idempotency-Key": "k 1"})
    assert (first.status_code, "Idempotency-Replayed" in first.headers) == (201, False)
    same_wish = b'{ "timeout_s": 60.0, "input": {"a": [2], "b": 1}, "metadata": {} }'
    for key in ("k 1", '"k 1"'):
        again = await api.client.post("/tasks", content=same_wish, headers={"Idempotency-Key": key})
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (200, "true")
        assert (again.content, again.headers["Location"]) == (first.content, first.headers["Location"])
    other = await api.client.post("/tasks", json={"input": 2}, headers={"Idempotency-Key": "k 1"})
    is_problem(other, 422, "key_reused")


async def test_a_repeat_may_wait_too_and_an_ended_task_is_repeated_as_it_ended(api: Api):
    headers = waits(**{"Idempotency-Key": "k"})
    posting = [asyncio.ensure_future(api.client.post("/tasks", json={}, headers=headers)) for _ in range(5)]
    task_id = await newest(api)
    await api.client.post(f"/tasks/{task_id}/cancel")
    answers = await asyncio.gather(*posting)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 200, 201]
    answers.append(await api.client.post("/tasks", json={}, headers=headers))
    assert {(one.json()["task_id"], one.json()["status"]) for one in answers} == {(task_id, "cancelled")}


async def test_twenty_posts_with_one_key_make_one_task(api: Api):
    posting = [api.client.post("/tasks", json={}, headers={"Idempotency-Key": "k"}) for _ in range(20)]
    answers = await asyncio.gather(*posting)
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["task_id"] for answer in answers}) == 1


async def test_what_is_no_key_is_a_bad_request(api: Api):
    for key in (b"", b'""', b"x" * 256, b"a\tb", b"\xe9"):
        answer = await api.client.post("/tasks", json={}, headers=[(b"Idempotency-Key", key)])
        is_problem(answer, 400, "bad_request")
    assert (await api.client.post("/tasks", json={}, headers={"Idempotency-Key": "x" * 255})).status_code == 201


async def said(api: Api, task_id: str, path: str, wish: object, key: str) -> httpx.Response:
    return await api.client.post(f"/tasks/{task_id}/{path}", json=wish, headers={"Idempotency-Key": key})


async def test_a_repeated_message_is_one_message(api: Api):
    task_id = await api.begin(start_run(), request_input())
    answers = await asyncio.gather(*[said(api, task_id, "messages", {"text": "blue"}, "k") for _ in range(10)])
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["version"] for answer in answers} == {4}
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 9
    another = await said(api, task_id, "messages", {"text": "red"}, "k2")
    assert (another.json()["version"], "Idempotency-Replayed" in another.headers) == (5, False)


async def test_a_repeated_cancel_is_one_cancel(api: Api):
    task_id = await api.begin()
    first = await said(api, task_id, "cancel", {"reason": "a"}, "k")
    again = await said(api, task_id, "cancel", {"reason": "a"}, '"k"')
    assert (first.status_code, again.status_code, first.content) == (200, 200, again.content)
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_one_key_on_two_kinds_of_wishes_is_two_wishes(api: Api):
    task_id = await api.begin()
    assert (await said(api, task_id, "pause", None, "k")).json()["status"] == "paused"
    assert (await said(api, task_id, "resume", None, "k")).json()["status"] == "pending"
    # The pause was had; it is not wished for again.
    assert (await said(api, task_id, "pause", None, "k")).json()["status"] == "pending"
