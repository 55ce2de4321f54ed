"""Niyra's approval modes: what is only planned does not happen, what is confirmed happens once."""

from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import pytest

from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.dialects.niyra import EXECUTE, Niyra, scenario, speaking

TWO_TOOLS: list[Json] = [{"tool": "search"}, {"tool": "gmail_send"}, {"complete": "Sent."}]
PLAN = [{"tool": "search", "why": ""}, {"tool": "gmail_send", "why": ""}]


@pytest.fixture
async def niyra(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Niyra]:
    async with speaking(nats_address, tmp_path) as niyra:
        yield niyra


async def test_a_dry_run_gives_the_plan_and_nothing_ran(niyra: Niyra):
    body = (await niyra.execute(*TWO_TOOLS, approval_mode="dry_run")).json()
    assert body.keys() == {"result", "plan", "conversation_id", "task_id", "tools_used", "elapsed_ms", "terminal"}
    assert (body["result"], body["plan"], body["tools_used"], body["terminal"]) == (None, PLAN, [], True)
    poll = await niyra.poll(body["task_id"])
    assert (poll["status"], poll["plan"], poll["tools_used"]) == ("complete", PLAN, [])


async def test_a_plan_runs_when_it_is_confirmed_and_only_once(niyra: Niyra):
    body = (await niyra.execute(*TWO_TOOLS, approval_mode="confirm")).json()
    expected = {"result", "plan", "pending_task_id", "conversation_id", "task_id", "status", "elapsed_ms", "terminal"}
    assert body.keys() == expected
    assert (body["plan"], body["terminal"], body["status"]) == (PLAN, False, "running")
    assert body["pending_task_id"] == body["task_id"]
    poll = await niyra.poll(body["task_id"])
    assert (poll["status"], poll["pending_task_id"], poll["plan"]) == ("running", body["task_id"], PLAN)
    assert poll["tools_used"] == []

    confirmed = (await niyra.execute(confirmed_task_id=body["pending_task_id"])).json()
    assert (confirmed["result"], confirmed["task_id"]) == ("Sent.", body["task_id"])
    assert confirmed["tools_used"] == ["search", "gmail_send"]
    assert confirmed["conversation_id"] == body["conversation_id"]
    again = (await niyra.execute(confirmed_task_id=body["pending_task_id"], instruction="x" * 9_000)).json()
    assert again | {"elapsed_ms": 0} == confirmed | {"elapsed_ms": 0}
    history = (await niyra.api.client.get(f"/tasks/{body['task_id']}/events")).json()["data"]
    assert [one["fact"]["type"] for one in history].count("task.tool_used") == 2


async def test_a_later_plan_is_confirmed_by_itself(niyra: Niyra):
    steps: list[Json] = [{"plan": ["search"]}, {"tool": "search"}, {"plan": ["send"]}, {"tool": "send"}]
    task_id = (await niyra.execute(*steps, approval_mode="confirm")).json()["task_id"]
    second = (await niyra.execute(confirmed_task_id=task_id)).json()
    assert (second["plan"], second["pending_task_id"]) == ([{"tool": "send", "why": ""}], task_id)
    assert (await niyra.poll(task_id))["tools_used"] == ["search"]
    assert (await niyra.execute(confirmed_task_id=task_id)).json()["tools_used"] == ["search", "send"]


async def test_what_can_not_be_confirmed_says_why(niyra: Niyra):
    client = niyra.api.client
    for unknown in (f"task_{uuid4()}", str(uuid4())):
        answer = await client.post(EXECUTE, json={"confirmed_task_id": unknown})
        assert (answer.status_code, answer.json()) == (404, {"error": "not_found", "error_description": "no such task"})
    answer = await client.post(EXECUTE, json={"confirmed_task_id": "task_xyz"})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    plain = await niyra.api.begin()
    answer = await client.post(EXECUTE, json={"confirmed_task_id": plain})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert answer.json()["error_description"] == "confirmed_task_id: this task has no plan that could be confirmed"


async def test_nobody_confirms_another_owners_plan(niyra: Niyra):
    task_id = (await niyra.execute(*TWO_TOOLS, approval_mode="confirm")).json()["task_id"]
    async with niyra.bearer("pat_eve", "niyra:execute", owner="eve") as eve:
        answer = await eve.post(EXECUTE, json={"confirmed_task_id": task_id})
        unknown = await eve.post(EXECUTE, json={"confirmed_task_id": f"task_{uuid4()}"})
    assert (answer.status_code, answer.content) == (404, unknown.content)
    assert (await niyra.poll(task_id))["pending_task_id"] == task_id


async def test_a_plan_that_was_refused_is_answered_as_it_ended(niyra: Niyra):
    task_id = (await niyra.execute(*TWO_TOOLS, approval_mode="confirm")).json()["task_id"]
    await niyra.api.client.post(f"/tasks/{task_id}/review", json={"approved": False, "feedback": "no mails"})
    await niyra.ended(task_id)
    body = (await niyra.execute(confirmed_task_id=task_id)).json()
    assert (body["status"], body["terminal"]) == ("failed", True)
    assert body["error"] == {"code": "plan_refused", "message": "no mails"}


async def test_confirming_shows_no_task_that_had_no_plan_to_be_confirmed(niyra: Niyra):
    """Its scope is not that of polling."""
    done = (await niyra.execute({"complete": "a secret"})).json()
    planned = await niyra.api.client.post(
        "/tasks", json={"input": scenario({"tool": "gmail_send"}, {"complete": "Sent."}), "approval_mode": "confirm"}
    )
    async with niyra.bearer("tt_executes", "niyra:execute") as client:
        for task_id in (done["task_id"], planned.json()["task_id"]):
            refused = await client.post(EXECUTE, json={"confirmed_task_id": task_id})
            assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")
            assert "secret" not in refused.text
