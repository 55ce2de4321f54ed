"""Niyra's API, row by row of its contract, with a worker at work."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from app.commands import CancelTask
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from tests.dialects.niyra import ASK, EXECUTE, TASKS, Niyra, scenario, speaking
from tests.worker.house import SOON_S

SHORT = 0.3
"""A window that is over before what takes LONG_S."""
LONG_S = 3_600


@pytest.fixture
async def niyra(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Niyra]:
    async with speaking(nats_address, tmp_path) as niyra:
        yield niyra


@pytest.fixture
async def hasty(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Niyra]:
    """The same with short windows."""
    async with speaking(nats_address, tmp_path, window_s=SHORT) as niyra:
        yield niyra


async def test_what_ends_in_the_window_is_answered_with_its_result(niyra: Niyra):
    answer = await niyra.execute({"tool": "gmail_send"}, {"tool": "gmail_read"}, {"complete": "Sent."})
    body = answer.json()
    assert answer.status_code == 200
    assert body.keys() == {"result", "conversation_id", "task_id", "tools_used", "elapsed_ms", "terminal"}
    assert (body["result"], body["tools_used"], body["terminal"]) == ("Sent.", ["gmail_send", "gmail_read"], True)
    assert UUID(body["conversation_id"])
    assert 0 <= body["elapsed_ms"] <= SOON_S * 1000
    assert "Retry-After" not in answer.headers


async def test_past_the_window_the_caller_polls(hasty: Niyra):
    answer = await hasty.execute({"tool": "search"}, {"say": "so far"}, {"sleep": LONG_S})
    body = answer.json()
    assert body.keys() == {"result", "conversation_id", "task_id", "status", "elapsed_ms", "terminal"}
    assert (answer.status_code, body["result"], body["status"], body["terminal"]) == (200, None, "running", False)
    assert body["elapsed_ms"] >= SHORT * 1000
    assert answer.headers["Retry-After"] == "3"
    async with asyncio.timeout(SOON_S):
        while (poll := await hasty.poll(body["task_id"]))["partial_text"] != "so far":
            assert poll["terminal"] is False
            await asyncio.sleep(0.02)
    expected = {"task_id": body["task_id"], "status": "running", "completed_at": None, "tools_used": ["search"]}
    assert poll.items() >= expected.items()
    assert (poll["result"], poll["error"]) == (None, None)
    assert isinstance(poll["started_at"], str)
    await hasty.api.tell(TaskId(body["task_id"]), CancelTask(by="ann"))


async def test_a_task_that_asks_is_answered_before_the_window_is_over(niyra: Niyra):
    async with asyncio.timeout(SOON_S):  # the windows are a minute and half a minute
        body = (await niyra.execute({"ask": "For whom?"}, {"complete": "x"})).json()
        assert (body["status"], body["terminal"], body["waiting_for"]["about"]) == ("running", False, "For whom?")
        review = (await niyra.execute({"review": "Send it?"}, {"complete": "x"})).json()
        assert (review["terminal"], review["waiting_for"]["about"]) == (False, "Send it?")
        answer = (await niyra.ask({"ask": "For whom?"}, {"complete": "x"})).json()
        assert (answer["answer"], isinstance(answer["task_id"], str)) == (None, True)


async def test_what_goes_on_behind_the_window_ends_and_says_so(hasty: Niyra):
    body = (await hasty.execute({"sleep": 2 * SHORT}, {"complete": "done at last"})).json()
    poll = await hasty.ended(body["task_id"])
    assert (poll["status"], poll["result"], poll["error"]) == ("complete", "done at last", None)
    assert isinstance(poll["completed_at"], str)


async def test_a_task_that_fails_in_the_window_is_an_answer(niyra: Niyra):
    answer = await niyra.execute({"fail": {"code": "no_luck", "message": "none today"}})
    body = answer.json()
    assert (answer.status_code, body["result"], body["terminal"], body["status"]) == (200, None, True, "failed")
    assert body["error"] == {"code": "no_luck", "message": "none today"}
    poll = await niyra.poll(body["task_id"])
    assert (poll["status"], poll["error"], poll["partial_text"]) == ("failed", body["error"], None)


async def test_a_task_that_is_cancelled_in_the_window_is_an_answer(niyra: Niyra):
    executing = asyncio.ensure_future(niyra.execute({"sleep": LONG_S}))
    task_id = await only_task(niyra)
    await niyra.api.tell(task_id, CancelTask(by="ann", reason="enough"))
    body = (await executing).json()
    assert (body["result"], body["terminal"], body["status"], body["task_id"]) == (None, True, "cancelled", task_id)
    assert body["error"] == {"code": "cancelled", "message": "enough"}


async def only_task(niyra: Niyra, status: str = "running") -> TaskId:
    """The id of the one task that there is, once it is so."""
    async with asyncio.timeout(SOON_S):
        while True:
            listed = (await niyra.api.client.get("/tasks", params={"status": status})).json()["data"]
            if listed:
                return TaskId(listed[0]["task_id"])
            await asyncio.sleep(0.02)


async def test_a_caller_that_hangs_up_loses_nothing(niyra: Niyra):
    body = {"instruction": scenario({"sleep": 0.5}, {"complete": "all the same"})}
    with pytest.raises(httpx.ReadTimeout):
        await niyra.api.client.post(EXECUTE, json=body, timeout=0.2)
    poll = await niyra.ended(await only_task(niyra, "pending,running,completed"))
    assert (poll["status"], poll["result"]) == ("complete", "all the same")


async def test_an_answer_that_is_asked_for_in_time_names_no_task(niyra: Niyra):
    answer = await niyra.ask({"tool": "search", "read_only": True}, {"complete": "42"})
    body = answer.json()
    assert answer.status_code == 200
    assert body.keys() == {"answer", "conversation_id", "task_id", "elapsed_ms"}
    assert (body["answer"], body["task_id"]) == ("42", None)
    assert (await niyra.api.client.post(ASK, json={"question": "what is a tide?"})).json()["answer"]


async def test_an_answer_past_the_window_is_polled_for(hasty: Niyra):
    body = (await hasty.ask({"sleep": 2 * SHORT}, {"complete": "42"})).json()
    assert body.keys() == {"answer", "conversation_id", "task_id", "elapsed_ms"}
    assert body["answer"] is None
    assert (await hasty.ended(body["task_id"]))["result"] == "42"


async def test_a_question_changes_nothing(niyra: Niyra):
    body = (await niyra.ask({"tool": "gmail_send"}, {"complete": "Sent."})).json()
    assert (body["answer"], body["status"]) == (None, "failed")
    assert body["error"]["code"] == "tool_not_read_only"
    assert (await niyra.poll(body["task_id"]))["tools_used"] == []


async def test_a_repeat_under_the_same_key_is_the_same_task(niyra: Niyra):
    key = {"Idempotency-Key": "once"}
    wish = {"instruction": scenario({"complete": "once"})}
    first, again = [await niyra.api.client.post(EXECUTE, json=wish, headers=key) for _ in range(2)]
    assert [one.headers.get("Idempotency-Replayed") for one in (first, again)] == [None, "true"]
    assert again.json() | {"elapsed_ms": 0} == first.json() | {"elapsed_ms": 0}
    other = await niyra.api.client.post(EXECUTE, json={"instruction": "another"}, headers=key)
    assert (other.status_code, other.json()["error"]) == (422, "invalid_request")


async def test_all_of_it_is_under_its_prefix_too(niyra: Niyra):
    client = niyra.api.client
    body = (await client.post(f"/niyra{EXECUTE}", json={"instruction": scenario({"complete": "x"})})).json()
    assert body["result"] == "x"
    poll = await client.get(f"/niyra{TASKS}/{body['task_id']}")
    assert poll.json() == await niyra.poll(body["task_id"])
    question = {"question": scenario({"complete": "y"})}
    assert (await client.post(f"/niyra{ASK}", json=question)).json()["answer"] == "y"
