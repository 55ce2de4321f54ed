"""The native API over HTTP: each route does what it says, for those who may, and for their own tasks only."""

import hashlib

import httpx
import msgspec
import pytest

from app.commands import CancelTask, Command
from app.dialects.native import TaskBody
from eventstore.cursor import event_id
from eventstore.events import TaskId, Usage
from tests.api import DEV, Api
from tests.lifecycle.commands import (
    complete,
    finish_step,
    produce,
    propose_plan,
    request_input,
    request_review,
    start_run,
)
from tests.log.logs import new_task

PROBLEM = "application/problem+json"
UNKNOWN = new_task()


def is_problem(answer: httpx.Response, status: int, code: str) -> None:
    """An RFC 9457 problem of this status and code."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, PROBLEM), answer.text
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]


async def body(api: Api, task_id: TaskId) -> dict[str, object]:
    answer = await api.client.get(f"/tasks/{task_id}")
    assert answer.status_code == 200
    return msgspec.json.decode(answer.content, type=dict[str, object])


async def test_a_new_task_is_created_with_its_place_and_version(api: Api):
    wish = {
        "agent": "simulator",
        "input": {"steps": [{"say": "hi"}]},
        "title": "A title",
        "session_id": "s-1",
        "metadata": {"a": [1, None, {"b": 2.5}]},
        "timeout_s": 60,
        "max_failures": 3,
        "approval_mode": "confirm",
    }
    answer = await api.client.post("/tasks", json=wish, headers={"X-Request-Id": "r-1"})
    assert (answer.status_code, answer.headers["ETag"]) == (201, '"1"')
    task = msgspec.json.decode(answer.content, type=TaskBody)
    assert answer.headers["Location"] == f"/tasks/{task.task_id}"
    assert (task.status, task.version, task.terminal, task.poll_after_s) == ("pending", 1, False, 1.0)
    for name in ("agent", "input", "title", "session_id", "metadata", "max_failures", "approval_mode"):
        assert answer.json()[name] == wish[name]
    assert task.deadline is not None
    assert task.created_at is not None
    assert (task.deadline - task.created_at).total_seconds() == pytest.approx(60, abs=1)
    again = await api.client.get(answer.headers["Location"])
    assert (again.status_code, again.content, again.headers["ETag"]) == (200, answer.content, '"1"')
    (event,) = (await api.client.get(f"/tasks/{task.task_id}/events")).json()["data"]
    assert (event["causation_id"], event["correlation_id"]) == ("r-1", "r-1")
    assert event["actor"].startswith("dev/")


async def test_nothing_needs_to_be_said_for_a_task(api: Api):
    answer = await api.client.post("/tasks", json={})
    assert answer.status_code == 201
    assert (answer.json()["agent"], answer.json()["input"], answer.json()["max_failures"]) == ("simulator", None, 5)


async def test_a_task_is_found_by_either_spelling_of_its_id(api: Api):
    task_id = await api.begin()
    for spelling in (task_id, task_id.upper(), task_id.removeprefix("task_")):
        assert (await api.client.get(f"/tasks/{spelling}")).json()["task_id"] == task_id


async def test_a_body_tells_all_that_happened(api: Api):
    usage = Usage(provider="p", model="m", input_tokens=3, output_tokens=4, cost=0.5)
    commands: list[Command] = [
        start_run(),
        finish_step(kind="tool", name="search"),
        produce("Hel", step=1),
        produce("lo", step=1, offset=3),
        msgspec.structs.replace(finish_step(1), usage=usage),
    ]
    task_id = await api.begin(*commands)
    running = await body(api, task_id)
    assert (running["status"], running["run"], running["tools_used"]) == ("running", 1, ["search"])
    assert (running["partial_text"], running["result"]) == ("Hello", None)
    assert running["usage"] == {"provider": "p", "model": "m", "input_tokens": 3, "output_tokens": 4, "cost": 0.5}
    await api.tell(task_id, request_input(2))
    assert (await body(api, task_id))["question"] == "Which one?"
    answer = await api.client.post(f"/tasks/{task_id}/messages", json={"text": "The blue one"})
    assert (answer.status_code, answer.json()["status"], answer.json()["question"]) == (200, "pending", None)
    await api.tell(task_id, start_run(2), request_review(3, run=2))
    answer = await api.client.post(f"/tasks/{task_id}/review", json={"approved": False, "feedback": "No"})
    assert (answer.status_code, answer.json()["review"]) == (200, None)
    await api.tell(task_id, start_run(3), propose_plan(4, run=3), complete(3, result="The end"))
    ended = await body(api, task_id)
    assert (ended["status"], ended["terminal"], ended["result"]) == ("completed", True, "The end")
    assert ended["plan"] == [{"tool": "search", "why": "to find it"}, {"tool": "read"}]
    assert (ended["poll_after_s"], ended["ended_at"]) == (None, ended["updated_at"])


async def test_what_did_not_change_is_not_sent_again(api: Api):
    task_id = await api.begin()
    for known in ('"1"', 'W/"1"', '"7", "1"', "*"):
        same = await api.client.get(f"/tasks/{task_id}", headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", '"1"'), known
    for known in ('"0"', "1", "nonsense", '""'):
        assert (await api.client.get(f"/tasks/{task_id}", headers={"If-None-Match": known})).status_code == 200
    await api.tell(task_id, CancelTask(by="ann"))
    changed = await api.client.get(f"/tasks/{task_id}", headers={"If-None-Match": '"1"'})
    assert (changed.status_code, changed.headers["ETag"]) == (200, '"2"')


async def test_pause_resume_and_cancel(api: Api):
    task_id = await api.begin()
    for path, said, status in (
        ("pause", {"reason": "lunch"}, "paused"),
        ("pause", None, "paused"),
        ("resume", None, "pending"),
        ("cancel", {"reason": "no need"}, "cancelled"),
        ("cancel", {"reason": "again"}, "cancelled"),
    ):
        answer = await api.client.post(f"/tasks/{task_id}/{path}", json=said)
        assert (answer.status_code, answer.json()["status"]) == (200, status), answer.text
    assert answer.json()["error"] == {"code": "cancelled", "message": "no need"}
    for path, said in (("pause", {}), ("resume", None), ("messages", {"text": "x"})):
        is_problem(await api.client.post(f"/tasks/{task_id}/{path}", json=said), 409, "ended")


async def test_a_command_may_come_without_a_body(api: Api):
    task_id = await api.begin()
    for path in ("pause", "resume", "cancel"):
        assert (await api.client.post(f"/tasks/{task_id}/{path}")).status_code == 200


async def test_nothing_to_review_is_a_conflict(api: Api):
    task_id = await api.begin()
    is_problem(await api.client.post(f"/tasks/{task_id}/review", json={"approved": True}), 409, "not_waiting")


async def test_history_by_pages_is_the_whole_history(api: Api):
    task_id = await api.begin(start_run(), *[produce("a", offset=n) for n in range(7)], complete())
    records = await api.rooms.tasks.log.read(DEV, task_id)
    for limit in (1, 3, 10, 1000):
        found: list[dict[str, object]] = []
        after: object = 0
        while True:
            page = (await api.client.get(f"/tasks/{task_id}/events?limit={limit}&after={after}")).json()
            assert len(page["data"]) <= limit
            found += page["data"]
            after = page["next_after"]
            if not page["has_more"]:
                break
        assert [(one["sequence"], one["id"]) for one in found] == [(one.sequence, event_id(one)) for one in records]
        for one, recorded in zip(found, records, strict=True):
            stored = msgspec.json.decode(recorded.stored, type=dict[str, object])
            assert {k: v for k, v in one.items() if k not in ("sequence", "id")} == stored
    middle = event_id(records[4])
    resumed = (await api.client.get(f"/tasks/{task_id}/events?after={middle}")).json()
    assert [one["sequence"] for one in resumed["data"]] == [one.sequence for one in records[5:]]


async def test_what_is_large_is_whole_in_the_poll_and_a_reference_in_the_stream(api: Api):
    large_input, large_result = "i" * 700_000, "r" * 900_000
    task_id = TaskId((await api.client.post("/tasks", json={"input": large_input})).json()["task_id"])
    await api.tell(task_id, start_run(), complete(result=large_result))
    task = await body(api, task_id)
    assert (task["input"], task["result"]) == (large_input, large_result)
    records = await api.rooms.tasks.log.read(DEV, task_id)
    assert all(len(recorded.stored) < 2_000 for recorded in records)
    for recorded, name, value in ((records[0], "input", large_input), (records[-1], "result", large_result)):
        reference = recorded.record.blob
        assert reference is not None
        assert reference.fields == (name,)
        answer = await api.client.get(f"/tasks/{task_id}/blobs/{reference.sha256}")
        assert (answer.status_code, answer.json()) == (200, {name: value})
        assert hashlib.sha256(answer.content).hexdigest() == reference.sha256
        assert answer.headers["ETag"] == f'"{reference.sha256}"'
    for no_digest in ("0" * 64, "x", "%2e%2e", reference.sha256.upper()):
        is_problem(await api.client.get(f"/tasks/{task_id}/blobs/{no_digest}"), 404, "not_found")


async def test_the_agents_are_listed(api: Api):
    (agent,) = (await api.client.get("/agents")).json()["data"]
    assert (agent["name"], agent["limit"]) == ("simulator", 32)
    is_problem(await api.client.post("/tasks", json={"agent": "nobody"}), 400, "bad_request")


READS = ("", "/events", f"/blobs/{'0' * 64}")
WRITES: dict[str, object] = {
    "/cancel": {},
    "/pause": None,
    "/resume": None,
    "/messages": {"text": "x"},
    "/review": {"approved": True},
}


async def test_the_task_of_another_does_not_exist(api: Api, stranger: httpx.AsyncClient):
    task_id = await api.begin(start_run())
    for path in READS:
        for accept in ("application/json", "text/event-stream"):
            hers = await stranger.get(f"/tasks/{task_id}{path}", headers={"Accept": accept})
            nobodys = await stranger.get(f"/tasks/{UNKNOWN}{path}", headers={"Accept": accept})
            no_id = await stranger.get(f"/tasks/no.id>*{path}", headers={"Accept": accept})
            is_problem(hers, 404, "not_found")
            assert hers.content == nobodys.content == no_id.content
    for path, said in WRITES.items():
        hers = await stranger.post(f"/tasks/{task_id}{path}", json=said, headers={"Idempotency-Key": "k"})
        nobodys = await stranger.post(f"/tasks/{UNKNOWN}{path}", json=said)
        is_problem(hers, 404, "not_found")
        assert hers.content == nobodys.content
    assert (await body(api, task_id))["version"] == 2


async def test_a_key_of_one_owner_means_nothing_to_another(api: Api, stranger: httpx.AsyncClient):
    headers = {"Idempotency-Key": "k"}
    mine = await api.client.post("/tasks", json={"input": 1}, headers=headers)
    hers = await stranger.post("/tasks", json={"input": 2}, headers=headers)
    assert (mine.status_code, hers.status_code) == (201, 201)
    assert mine.json()["task_id"] != hers.json()["task_id"]


async def test_each_route_needs_its_scope(api: Api):
    task_id = await api.begin()
    await api.rooms.tokens.add("tt_reads", DEV, ("tasks:read",))
    await api.rooms.tokens.add("tt_writes", DEV, ("tasks:write",))
    await api.rooms.tokens.add("tt_audits", DEV, ("audit:all",))
    reads, writes, audits = ({"X-API-Key": token} for token in ("tt_reads", "tt_writes", "tt_audits"))
    async with httpx.AsyncClient(base_url=api.url) as client:
        for path in ("/agents", *(f"/tasks/{task_id}{path}" for path in READS)):
            for headers in (writes, audits):
                is_problem(await client.get(path, headers=headers), 403, "not_allowed")
        for path, said in WRITES.items():
            for headers in (reads, audits):
                is_problem(await client.post(f"/tasks/{task_id}{path}", json=said, headers=headers), 403, "not_allowed")
        is_problem(await client.post("/tasks", json={}, headers=reads), 403, "not_allowed")
        assert (await client.get(f"/tasks/{task_id}", headers=reads)).status_code == 200
        assert (await client.post(f"/tasks/{task_id}/cancel", headers=writes)).status_code == 200


async def test_without_a_valid_token_nothing_is_told(api: Api):
    task_id = await api.begin()
    credentials: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {api.token}"},
        {"Authorization": f"Bearer {'x' * 600}"},
        {"X-API-Key": "wrong", **api.bearer},
    ]
    async with httpx.AsyncClient(base_url=api.url) as client:
        for headers in credentials:
            answer = await client.get(f"/tasks/{task_id}", headers=headers)
            is_problem(answer, 401, "not_authenticated")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            for path in ("/agents", f"/tasks/{UNKNOWN}", "/tasks/x/events"):
                assert (await client.get(path, headers=headers)).content == answer.content
            for path, said in WRITES.items():
                assert (await client.post(f"/tasks/{task_id}{path}", json=said, headers=headers)).status_code == 401
            assert (await client.post("/tasks", content=b"{", headers=headers)).status_code == 401
        for headers in ({"Authorization": f"bearer {api.token}"}, {"X-API-Key": api.token}):
            assert (await client.get("/agents", headers=headers)).status_code == 200


async def test_what_needs_no_token(api: Api):
    async with httpx.AsyncClient(base_url=api.url) as client:
        assert (await client.get("/health/live")).json() == {"status": "ok", "problems": []}
        assert (await client.get("/health/ready")).status_code == 200
        figures = (await client.get("/metrics")).text
        for name in ("facts_appended", "append_seconds", "attached_tasks", "open_streams", "tail_lag", "http_requests"):
            assert f"tasktrail_{name}" in figures
        described = (await client.get("/docs/openapi.json")).json()
        assert described["info"]["title"] == "Tasktrail"
        assert (await client.get("/docs")).headers["Content-Type"].startswith("text/html")


async def test_paths_and_methods_that_are_not_there(api: Api):
    for path in ("/nowhere", "/tasks/x/nowhere", "/", "/tasks//events", "/%00", "/..%2f..%2fetc"):
        is_problem(await api.client.get(path), 404, "not_found")
    task_id = await api.begin()
    for method, path in (
        ("DELETE", f"/tasks/{task_id}"),
        ("PUT", "/tasks"),
        ("PATCH", "/agents"),
        ("DELETE", "/tasks"),
    ):
        answer = await api.client.request(method, path)
        is_problem(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"]
    options = await api.client.options(f"/tasks/{task_id}")
    assert options.status_code == 204
    assert "GET" in options.headers["Allow"]
