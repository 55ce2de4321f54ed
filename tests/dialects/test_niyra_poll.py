"""Niyra's poll: every status that a task can have, in its words."""

from app.commands import CancelTask, Command, FailTask, RequestPause, TimeOutTask
from app.tasks import Done
from eventstore.events import Json
from tests.api import CAUSE, DEV, Api
from tests.dialects.niyra import TASKS
from tests.lifecycle.commands import complete, fail_run, request_input, request_review, start_run

FIELDS = {
    "task_id",
    "status",
    "terminal",
    "started_at",
    "completed_at",
    "tools_used",
    "result",
    "partial_text",
    "error",
}
LIVES: dict[str, tuple[list[Command], str]] = {
    "pending": ([], "pending"),
    "paused before its first run": ([RequestPause()], "pending"),
    "running": ([start_run()], "running"),
    "waiting for input": ([start_run(), request_input()], "running"),
    "awaiting review": ([start_run(), request_review()], "running"),
    "a retry is due": ([start_run(), fail_run()], "running"),
    "paused": ([start_run(), request_input(), RequestPause()], "running"),
    "completed": ([start_run(), complete()], "complete"),
    "failed": ([start_run(), FailTask(run=1, code="no_luck", message="none")], "failed"),
    "cancelled": ([CancelTask(by="ann")], "cancelled"),
}

WAITS: dict[str, tuple[str, str | None, str]] = {
    "paused before its first run": ("paused", None, "resume"),
    "waiting for input": ("waiting_for_input", "Which one?", "messages"),
    "awaiting review": ("awaiting_review", "Send the mail?", "review"),
    "paused": ("paused", None, "resume"),
}
"""Our status, what it is about, and the native route that ends the waiting."""
SENT: dict[str, dict[str, Json]] = {"messages": {"text": "the blue one"}, "review": {"approved": True}, "resume": {}}


async def test_a_task_that_somebody_has_to_see_to_says_for_what_it_waits_and_how_it_goes_on(api: Api):
    for life, (status, about, route) in WAITS.items():
        task_id = await api.begin(*LIVES[life][0])
        waiting = (await api.client.get(f"{TASKS}/{task_id}")).json()["waiting_for"]
        assert (waiting["status"], waiting["about"]) == (status, about)
        method, path, *_ = waiting["how"].split()
        assert (method, path, "tasks:write" in waiting["how"]) == ("POST", f"/tasks/{task_id}/{route}", True)
        done = await api.client.request(method, path, json=SENT[route] or None)
        assert done.status_code == 200, done.text
        after = (await api.client.get(f"{TASKS}/{task_id}")).json()
        assert after.get("waiting_for") != waiting


async def test_every_status_has_its_word_and_every_field_is_there(api: Api):
    for life, (commands, status) in LIVES.items():
        task_id = await api.begin(*commands)
        answer = await api.client.get(f"{TASKS}/{task_id}")
        body = answer.json()
        assert body.keys() == FIELDS | ({"waiting_for"} if life in WAITS else set())
        assert (life, body["task_id"], body["status"]) == (life, task_id, status)
        terminal = status in ("complete", "failed", "cancelled")
        assert body["terminal"] is terminal
        assert (body["completed_at"] is not None) is terminal
        assert (body["error"] is not None) is (status == "failed")
        assert (body["partial_text"] is None) is (status in ("failed", "cancelled"))
        assert ("Retry-After" in answer.headers) is not terminal
        assert terminal or int(answer.headers["Retry-After"]) >= 3
        assert answer.headers["Cache-Control"] == "private, no-cache"


async def test_a_task_that_timed_out_has_failed(api: Api):
    created = await api.client.post("/tasks", json={"timeout_s": 3600})
    task_id = created.json()["task_id"]
    task = (await api.rooms.tasks.get(DEV, task_id))[0]
    assert task is not None
    assert task.task.deadline is not None
    done = await api.rooms.tasks.execute(DEV, task_id, TimeOutTask(deadline=task.task.deadline), CAUSE)
    assert isinstance(done, Done)
    body: dict[str, Json] = (await api.client.get(f"{TASKS}/{task_id}")).json()
    assert (body["status"], body["terminal"]) == ("failed", True)
    assert isinstance(body["error"], dict)
    assert body["error"]["code"] == "timeout"


async def test_a_poll_that_knows_the_version_costs_no_body(api: Api):
    task_id = await api.begin()
    first = await api.client.get(f"{TASKS}/{task_id}")
    known = {"If-None-Match": first.headers["ETag"]}
    again = await api.client.get(f"{TASKS}/{task_id}", headers=known)
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    await api.tell(task_id, CancelTask(by="ann"))
    assert (await api.client.get(f"{TASKS}/{task_id}", headers=known)).json()["status"] == "cancelled"


async def test_a_large_result_is_whole(api: Api):
    result = "long " * 100_000
    task_id = await api.begin(start_run(), complete(result=result))
    assert (await api.client.get(f"{TASKS}/{task_id}")).json()["result"] == result
