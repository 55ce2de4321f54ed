"""Shannon's task API, row by row of its contract, with a worker at work."""

from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import httpx
import msgspec
import pytest

from app.dialects.shannon_unified import About, Unified, Used
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner, TaskId
from tests.dialects.shannon import TASKS, Shannon, speaking


@pytest.fixture
async def shannon(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    async with speaking(nats_address, tmp_path) as shannon:
        yield shannon


ALWAYS = {
    *("task_id", "workflow_id", "status", "result", "response", "error"),
    *("created_at", "updated_at", "query", "session_id", "mode"),
}


async def test_a_submission_is_answered_at_once_and_names_its_task(shannon: Shannon):
    answer = await shannon.submit({"complete": "Paris"}, query="What is the capital of France?")
    body = answer.json()
    assert answer.status_code == 200
    assert body.keys() == {"task_id", "status", "message", "created_at"}
    session_id = answer.headers["X-Session-ID"]
    assert UUID(session_id)
    assert (body["status"], answer.headers["X-Workflow-ID"]) == ("STATUS_CODE_OK", body["task_id"])
    assert body["message"] == f"Task submitted successfully. Session: {session_id}"
    done = await shannon.ended(body["task_id"])
    assert (done["session_id"], done["created_at"]) == (session_id, body["created_at"])


async def test_a_completed_task_has_its_result_twice(shannon: Shannon):
    usage: Json = {"provider": "openai", "model": "gpt-5-mini", "input_tokens": 200, "output_tokens": 100, "cost": 0.5}
    steps: list[Json] = [{"usage": usage}, {"complete": "Paris."}]
    task_id = await shannon.begun(*steps, query="Capital?", mode=" Simple ", session_id="user-123-session")
    done = await shannon.ended(task_id)
    assert done.keys() == ALWAYS | {"context", "model_used", "provider", "usage", "unified_response"}
    assert done["task_id"] == done["workflow_id"] == task_id
    assert (done["status"], done["mode"]) == ("TASK_STATUS_COMPLETED", "EXECUTION_MODE_SIMPLE")
    assert (done["result"], done["response"], done["error"]) == ("Paris.", {"result": "Paris."}, "")
    assert (done["query"], done["session_id"]) == ("Capital?", "user-123-session")
    assert (done["model_used"], done["provider"]) == ("gpt-5-mini", "openai")
    told = {"total_tokens": 300, "input_tokens": 200, "output_tokens": 100, "estimated_cost": 0.5}
    assert done["usage"] == told
    assert done["context"] == {"scenario": {"steps": steps}}


async def test_an_ended_task_tells_how_it_went_in_one_object(shannon: Shannon):
    usage: Json = {"model": "gpt-5-mini", "input_tokens": 200, "output_tokens": 100, "cost": 0.5}
    done = await shannon.ended(await shannon.begun({"usage": usage}, {"complete": "Paris."}, session_id="s"))
    told = msgspec.convert(done["unified_response"], Unified)
    assert (told.task_id, told.session_id, told.status) == (done["task_id"], "s", "completed")
    assert (told.result, told.error, told.usage) == (
        "Paris.",
        None,
        Used(input_tokens=200, output_tokens=100, total_tokens=300, cost_usd=0.5),
    )
    about = About(execution_mode="EXECUTION_MODE_STANDARD", agents_used=["simulator"], model="gpt-5-mini")
    assert told.metadata == about
    native = (await shannon.api.client.get(f"/tasks/{told.task_id}")).json()
    started, ended = [datetime.fromisoformat(native[name]) for name in ("started_at", "ended_at")]
    assert told.timestamp == ended
    assert told.performance.execution_time_ms == round((ended - started).total_seconds() * 1000)
    failed = await shannon.ended(await shannon.begun({"fail": {"code": "no_luck", "message": "none"}}))
    told = msgspec.convert(failed["unified_response"], Unified)
    assert (told.status, told.result, told.error, told.usage.total_tokens) == ("failed", "", "none", 0)
    running = await shannon.begun({"ask": "Which?"})
    assert "unified_response" not in await shannon.until(running, "waiting_for_input")


async def test_submitting_to_stream_says_where(shannon: Shannon):
    answer = await shannon.api.client.post(f"{TASKS}/stream", json={"query": "x", "session_id": "s 1"})
    body = answer.json()
    url = f"/api/v1/stream/sse?workflow_id={body['task_id']}"
    assert answer.status_code == 201
    assert body == {"workflow_id": body["task_id"], "task_id": body["task_id"], "stream_url": url}
    assert answer.headers["Link"] == f"<{url}>; rel=stream"
    assert (answer.headers["X-Workflow-ID"], answer.headers["X-Session-ID"]) == (body["task_id"], "s 1")


async def test_every_status_has_its_word(shannon: Shannon):
    failed = await shannon.begun({"fail": {"code": "no_luck", "message": "LLM service unavailable"}})
    asking = await shannon.begun({"ask": "Which?"}, {"complete": "{answer}"})
    reviewed = await shannon.begun({"review": "Send it?"}, {"complete": "sent"})
    paused = await shannon.begun({"ask": "Which?"})
    body = await shannon.until(asking, "waiting_for_input")
    assert (body["status"], body["metadata"]) == ("TASK_STATUS_RUNNING", {"pending_question": "Which?"})
    body = await shannon.until(reviewed, "awaiting_review")
    pending = {"pending_approval": {"approval_id": "approval-0", "subject": "Send it?"}}
    assert (body["status"], body["metadata"]) == ("TASK_STATUS_RUNNING", pending)
    await shannon.until(paused, "waiting_for_input")
    assert (await shannon.post(paused, "pause")).status_code == 202
    assert (await shannon.get(paused))["status"] == "TASK_STATUS_PAUSED"
    body = await shannon.ended(failed)
    assert body.keys() >= ALWAYS
    assert (body["status"], body["error"]) == ("TASK_STATUS_FAILED", "LLM service unavailable")
    assert (body["result"], body["response"]) == ("", None)
    assert (await shannon.post(asking, "cancel")).json()["success"] is True
    cancelled = await shannon.get(asking)
    assert (cancelled["status"], cancelled["error"]) == ("TASK_STATUS_CANCELLED", "")


async def test_health_and_the_routes_are_told_to_anybody(shannon: Shannon):
    async with httpx.AsyncClient(base_url=shannon.address) as anybody:
        for path, status in (("/health", "healthy"), ("/readiness", "ready")):
            answer = await anybody.get(path)
            assert (answer.status_code, answer.json()["status"]) == (200, status)
        told = (await anybody.get("/openapi.json")).json()
    assert {"/api/v1/tasks", "/api/v1/tasks/{task_id}/cancel", "/health"} <= told["paths"].keys()


async def test_a_session_id_is_given_back_as_it_was_submitted(shannon: Shannon):
    """In the body, and in the header where that can hold it."""
    for session_id in ("a\r\nX-Injected: 1", "é", " a", "a b", "user:1.x", "\x00", "'; drop"):
        answer = await shannon.submit({"complete": "x"}, session_id=session_id)
        assert "X-Injected" not in answer.headers
        assert answer.headers.get("X-Session-ID", session_id) == session_id
        assert answer.json()["message"] == f"Task submitted successfully. Session: {session_id}"
        assert (await shannon.get(answer.json()["task_id"]))["session_id"] == session_id
    assert "X-Session-ID" in answer.headers


async def test_an_agent_is_told_what_was_said_in_the_session(shannon: Shannon):
    first = await shannon.begun({"complete": "one"}, query="first", session_id="s1")
    await shannon.ended(first)
    second = TaskId(await shannon.begun({"complete": "two"}, query="second", session_id="s1"))
    attached, _ = await shannon.api.rooms.tasks.get(Owner("dev"), second)
    assert attached is not None
    assert attached.task.earlier == (first,)


async def listed(shannon: Shannon, **query: str | int) -> tuple[list[str], int]:
    """The ids of a page, and how many there are."""
    answer = await shannon.api.client.get(TASKS, params=query)
    assert answer.status_code == 200, answer.text
    return [one["task_id"] for one in answer.json()["tasks"]], answer.json()["total_count"]


async def test_a_list_has_what_was_submitted_newest_first(shannon: Shannon):
    usage: Json = {"usage": {"model": "m", "input_tokens": 2, "output_tokens": 1, "cost": 0.5}}
    done = await shannon.begun(usage, {"complete": "x"}, query="one", session_id="s1", mode="complex")
    failed = await shannon.begun({"fail": {}}, session_id="s1")
    asking = await shannon.begun({"ask": "?"})
    paused = await shannon.begun({"ask": "?"})
    await shannon.ended(done)
    await shannon.ended(failed)
    for task_id in (asking, paused):
        await shannon.until(task_id, "waiting_for_input")
    await shannon.post(paused, "pause")
    assert await listed(shannon) == ([paused, asking, failed, done], 4)
    assert await listed(shannon, limit=2, offset=1) == ([asking, failed], 4)
    assert await listed(shannon, limit=2, offset=3) == ([done], 4)
    assert await listed(shannon, offset=10**17) == ([], 4)
    assert await listed(shannon, session_id="s1") == ([failed, done], 2)
    assert await listed(shannon, status="completed", session_id="s1") == ([done], 1)
    assert await listed(shannon, status="Running") == ([asking], 1)
    assert await listed(shannon, status="QUEUED") == ([], 0)
    await shannon.post(asking, "cancel")
    assert await listed(shannon, status="CANCELED") == ([asking], 1)
    item = (await shannon.api.client.get(TASKS, params={"session_id": "s1"})).json()["tasks"][1]
    spent = {"total_tokens": 3, "cost_usd": 0.5, "prompt_tokens": 2, "completion_tokens": 1}
    assert (item["query"], item["status"], item["mode"]) == ("one", "TASK_STATUS_COMPLETED", "EXECUTION_MODE_COMPLEX")
    assert item["total_token_usage"] == spent
    assert item["created_at"] < item["completed_at"]
    assert "completed_at" not in (await shannon.api.client.get(TASKS)).json()["tasks"][0]
