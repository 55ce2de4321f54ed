"""Shannon's controls of a task: cancel, pause, resume, decide, tell, review; with a worker at work."""

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import msgspec
import pytest

from app.commands import DecideReview, ReceiveInput
from eventstore.connection import NatsAddress
from eventstore.events import Json, TaskId
from tests.api import running
from tests.dialects.shannon import PREFIX, TASKS, Shannon, speaking
from tests.lifecycle.commands import produce, propose_plan, request_review, start_run

ASK: Json = {"ask": "Which?"}
DECISION = f"{PREFIX}/api/v1/approvals/decision"
NOT_HALTED = {
    "is_paused": False,
    "is_cancelled": False,
    "paused_at": "",
    "pause_reason": "",
    "paused_by": "",
    "cancel_reason": "",
    "cancelled_by": "",
}


@pytest.fixture
async def shannon(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    async with speaking(nats_address, tmp_path) as shannon:
        yield shannon


async def state(shannon: Shannon, task_id: str) -> dict[str, Json]:
    return (await shannon.api.client.get(f"{TASKS}/{task_id}/control-state")).json()


async def waiting(shannon: Shannon, *steps: Json) -> str:
    """A task that asks, and waits."""
    task_id = await shannon.begun(*(steps or (ASK, {"complete": "{answer}"})))
    await shannon.until(task_id, "waiting_for_input")
    return task_id


def said(answer: httpx.Response, status: int) -> Json:
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_pause_is_told_with_its_reason_until_the_task_is_resumed(shannon: Shannon):
    task_id = await waiting(shannon)
    assert await state(shannon, task_id) == NOT_HALTED
    done = {"success": True, "message": "Pause signal sent", "task_id": task_id}
    assert said(await shannon.post(task_id, "pause", reason="lunch"), 202) == done
    paused = await state(shannon, task_id)
    assert (paused["is_paused"], paused["pause_reason"]) == (True, "lunch")
    assert str(paused["paused_by"]).startswith("dev/")
    assert str(paused["paused_at"]).endswith("Z")
    assert said(await shannon.post(task_id, "pause"), 502) == {"error": "task is already paused"}
    done = {"success": True, "message": "Resume signal sent", "task_id": task_id}
    assert said(await shannon.post(task_id, "resume"), 202) == done
    assert await state(shannon, task_id) == NOT_HALTED
    assert said(await shannon.post(task_id, "resume"), 502) == {"error": "task is not paused"}


async def test_a_wish_for_a_pause_keeps_its_reason_until_a_worker_grants_it(shannon: Shannon):
    task_id = await shannon.begun({"tool": "one", "takes": 0.3}, {"tool": "two"}, {"complete": "x"})
    await shannon.until(task_id, "running")
    assert (await shannon.post(task_id, "pause", reason="lunch")).status_code == 202
    assert (await shannon.post(task_id, "pause")).status_code == 202  # it is not paused yet
    assert (await shannon.until(task_id, "paused"))["status"] == "TASK_STATUS_PAUSED"
    paused = await state(shannon, task_id)
    assert (paused["pause_reason"], str(paused["paused_by"])[:4]) == ("lunch", "dev/")


async def test_what_has_ended_can_be_neither_paused_nor_resumed_nor_cancelled(shannon: Shannon):
    done = await shannon.begun({"complete": "x"})
    failed = await shannon.begun({"fail": {}})
    for task_id, how in ((done, "completed"), (failed, "failed")):
        await shannon.ended(task_id)
        for what in ("pause", "resume"):
            assert said(await shannon.post(task_id, what), 502) == {"error": f"cannot {what} {how} task"}
        refused = {"success": False, "message": f"Failed to cancel task: the task is {how}"}
        assert said(await shannon.post(task_id, "cancel"), 202) == refused


async def test_a_cancellation_is_told_with_its_reason_and_may_be_repeated(shannon: Shannon):
    task_id = await waiting(shannon)
    done = {"success": True, "message": "Task cancelled successfully"}
    assert said(await shannon.post(task_id, "cancel", reason="too late"), 202) == done
    assert said(await shannon.post(task_id, "cancel"), 202) == done
    cancelled = await state(shannon, task_id)
    assert (cancelled["is_cancelled"], cancelled["is_paused"]) == (True, False)
    assert (cancelled["cancel_reason"], str(cancelled["cancelled_by"])[:4]) == ("too late", "dev/")


async def test_the_body_of_a_control_may_be_left_out_or_be_nothing_of_the_kind(shannon: Shannon):
    task_id = await waiting(shannon)
    for what, content in (("pause", b""), ("resume", b"{"), ("pause", b"[1]"), ("resume", b'{"reason": 5}')):
        answer = await shannon.api.client.post(f"{TASKS}/{task_id}/{what}", content=content)
        assert answer.status_code == 202, answer.text
    said(await shannon.post(task_id, "cancel", reason="x" * 1_001), 400)
    assert (await state(shannon, task_id)) == NOT_HALTED


async def test_a_control_with_the_same_key_and_body_happens_once(shannon: Shannon):
    task_id = await waiting(shannon)

    async def post(what: str, reason: str = "r") -> httpx.Response:
        headers = {"Idempotency-Key": "k"}
        return await shannon.api.client.post(f"{TASKS}/{task_id}/{what}", json={"reason": reason}, headers=headers)

    first, again = await post("pause"), await post("pause")
    assert said(first, 202) == said(again, 202)
    assert "X-Idempotency-Cached" not in first.headers
    assert (again.headers["X-Idempotency-Cached"], again.headers["X-Idempotency-Key"]) == ("true", "k")
    assert said(await post("pause", "another"), 502) == {"error": "task is already paused"}
    assert "X-Idempotency-Cached" not in (await post("resume")).headers
    assert (await post("pause")).headers["X-Idempotency-Cached"] == "true"  # said long ago: it is not paused anew
    assert (await state(shannon, task_id))["is_paused"] is False


async def test_a_message_answers_what_the_task_asks(shannon: Shannon):
    task_id = await waiting(shannon)
    told = f"{PREFIX}/api/v1/swarm/{task_id}/message"
    for bad in ({}, {"message": " "}, {"message": "x" * 32_769}, {"message": 5}, {"message": "x", "y": "x" * 65_536}):
        said(await shannon.api.client.post(told, json=bad), 400)
    answer = await shannon.api.client.post(told, json={"message": "blue"})
    assert said(answer, 200) == {"success": True, "status": "sent"}
    assert (await shannon.ended(task_id))["result"] == "blue"
    assert "has ended" in str(said(await shannon.api.client.post(told, json={"message": "x"}), 400))
    missing = await shannon.api.client.post(told.replace("task_", "wf-"), json={"message": "x"})
    assert said(missing, 404) == {"error": "Workflow not found"}


async def decision(shannon: Shannon, task_id: str, approval_id: str = "approval-0", **body: Json) -> httpx.Response:
    body = {"workflow_id": task_id, "approval_id": approval_id, **body}
    return await shannon.api.client.post(DECISION, json=body)


async def test_what_awaits_approval_is_decided_once(shannon: Shannon):
    agreed = await shannon.begun({"review": "Send it?"}, {"complete": "sent"})
    refused = await shannon.begun({"review": "Send it?"}, {"complete": "sent"})
    for task_id in (agreed, refused):
        await shannon.until(task_id, "awaiting_review")
    for bad in ({}, {"workflow_id": agreed}, {"workflow_id": agreed, "approval_id": ""}):
        error = {"error": "workflow_id and approval_id are required"}
        assert said(await shannon.api.client.post(DECISION, json=bad), 400) == error
    missing = {"error": "Workflow or approval not found"}
    assert said(await decision(shannon, agreed, "approval-1", approved=True), 404) == missing
    assert said(await decision(shannon, agreed, "a-0", approved=True), 404) == missing
    assert said(await decision(shannon, f"{agreed[:-1]}x", approved=True), 404) == missing
    done = {
        "status": "sent",
        "success": True,
        "message": "Approval decision sent",
        "workflow_id": agreed,
        "run_id": "",
        "approval_id": "approval-0",
    }
    assert said(await decision(shannon, agreed, approved=True), 200) == done
    await shannon.ended(agreed)
    assert said(await decision(shannon, agreed, approved=True), 200) == done | {"message": "It was approved before"}
    other = done | {"message": "It was approved before", "success": False}
    assert said(await decision(shannon, agreed, approved=False), 200) == other
    assert (await shannon.get(agreed))["result"] == "sent"
    told = await decision(shannon, refused, feedback="not to customers")
    assert told.json()["message"] == "Refusal sent: `approved` is missing, which means no"
    assert (await shannon.ended(refused))["error"] == "not to customers"


async def planned(shannon: Shannon) -> str:
    """A task whose plan awaits its review."""
    manual: dict[str, Json] = {"force_research": True, "review_plan": "manual"}
    plan: Json = {"plan": ["search", {"tool": "read", "why": "to be sure"}]}
    task_id = await shannon.begun(plan, {"tool": "search"}, {"complete": "found"}, query="Tides?", context=manual)
    await shannon.until(task_id, "awaiting_review")
    return task_id


async def test_a_plan_is_talked_over_and_approved(shannon: Shannon):
    task_id = await planned(shannon)
    review = f"{TASKS}/{task_id}/review"
    answer = await shannon.api.client.get(review)
    first = answer.json()
    assert (answer.status_code, answer.headers["ETag"]) == (200, "1")
    assert (first["status"], first["round"], first["version"]) == ("reviewing", 1, 1)
    assert (first["current_plan"], first["query"]) == ("1. search\n2. read: to be sure", "Tides?")
    assert [(one["role"], one["message"]) for one in first["rounds"]] == [("assistant", first["current_plan"])]
    stale = {"If-Match": '"7"'}
    talk = {"action": "feedback", "message": "Only the last year."}
    said(await shannon.api.client.post(review, json=talk, headers=stale), 409)
    answer = await shannon.api.client.post(review, json=talk, headers={"If-Match": "1"})
    second = answer.json()
    assert (answer.status_code, answer.headers["ETag"]) == (200, "2")
    plan = {"message": first["current_plan"], "round": 2, "version": 2, "intent": "feedback"}
    assert second["plan"] == plan
    assert (second["status"], second["round"], second["version"]) == ("reviewing", 2, 2)
    assert [one["role"] for one in second["rounds"]] == ["assistant", "user"]
    approve = {"action": "approve"}
    said(await shannon.api.client.post(review, json=approve, headers={"If-Match": "1"}), 409)
    done = {"status": "approved", "message": "Research started"}
    assert said(await shannon.api.client.post(review, json=approve, headers={"If-Match": "2"}), 200) == done
    assert said(await shannon.api.client.post(review, json=approve), 200) == done
    said(await shannon.api.client.post(review, json=talk), 409)
    assert (await shannon.ended(task_id))["result"] == "found"
    assert (await shannon.api.client.get(review)).json()["status"] == "approved"


async def test_a_review_refuses_what_it_can_not_take(shannon: Shannon):
    task_id = await planned(shannon)
    review = f"{TASKS}/{task_id}/review"
    long = {"action": "feedback", "message": "é" * 5_121}
    for bad in ({}, {"action": "reject"}, {"action": "feedback"}, {"action": "feedback", "message": " "}, long, [1]):
        said(await shannon.api.client.post(review, json=bad), 400)
    for _ in range(9):
        said(await shannon.api.client.post(review, json={"action": "feedback", "message": "again"}), 200)
    said(await shannon.api.client.post(review, json={"action": "feedback", "message": "again"}), 409)
    unplanned = await shannon.begun({"complete": "x"})
    missing = {"error": "Review session not found or expired"}
    assert said(await shannon.api.client.get(f"{TASKS}/{unplanned}/review"), 404) == missing
    # Refused as an approval, it is no longer talked over.
    said(await decision(shannon, task_id, approved=False), 200)
    assert said(await shannon.api.client.get(review), 404) == missing


def answered(answer: httpx.Response) -> dict[str, Json]:
    return msgspec.convert(said(answer, 200), dict[str, Json])


async def test_a_review_and_a_decision_are_found_in_a_history_of_any_length(nats_address: NatsAddress):
    """Of several pages, of which only what was said of the plan is kept."""
    async with running(nats_address) as api:
        begun = await api.client.post(TASKS, json={"query": "x", "context": {"review_plan": "manual"}})
        task_id = TaskId(begun.json()["task_id"])
        review, decision = f"{TASKS}/{task_id}/review", {"workflow_id": task_id, "approval_id": "approval-0"}
        await api.tell(task_id, start_run(), *(produce("x", offset=n) for n in range(300)))
        assert said(await api.client.get(review), 404) == {"error": "Review session not found or expired"}
        said(await api.client.post(DECISION, json=decision), 404)
        await api.tell(task_id, request_review(), DecideReview(approved=False, step=0), start_run(2))
        await api.tell(task_id, *(produce("y", step=1, run=2, offset=n) for n in range(300)), propose_plan(1, run=2))
        for approved in (True, False):
            done = answered(await api.client.post(DECISION, json=decision | {"approved": approved}))
            assert (done["success"], done["message"]) == (not approved, "It was refused before")
        await api.tell(task_id, ReceiveInput(text="a"), ReceiveInput(text="b"))
        found = answered(await api.client.get(review))
        assert (found["status"], found["round"], found["version"]) == ("reviewing", 3, 3)
        rounds = msgspec.convert(found["rounds"], list[dict[str, str]])
        assert [(one["role"], one["message"]) for one in rounds[1:]] == [("user", "a"), ("user", "b")]
        said(await api.client.post(DECISION, json=decision | {"approval_id": "approval-1", "approved": True}), 200)
        for approved in (True, False):
            again = decision | {"approval_id": "approval-1", "approved": approved}
            assert answered(await api.client.post(DECISION, json=again))["success"] == approved
        assert answered(await api.client.get(review)) == found | {"status": "approved"}
        said(await api.client.post(DECISION, json=decision | {"approval_id": "approval-9"}), 404)
