"""What an agent is told of its conversation: its channel, and what was said before, the same in every run."""

from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from msgspec import Struct

from app.agents.agent import Brief, Work, call_tool
from app.commands import CancelTask
from eventstore.connection import NatsAddress
from eventstore.events import Json, TaskId
from tests.dialects.niyra import Niyra, speaking
from tests.worker.agents import Own


def tells_what_it_was_told(brief: Brief) -> Work:
    """Its result is what it knows, also after a run that broke; a tool's input holds it to saying the same again."""
    runs.append(brief)
    if brief.input == "fail":
        raise ZeroDivisionError
    known: Json = msgspec.to_builtins(brief.conversation)
    yield from call_tool("remember", known, lambda _: None)
    if brief.input == "breaks once" and sum(one.task_id == brief.task_id for one in runs) == 1:
        raise ZeroDivisionError
    return msgspec.json.encode({"channel": brief.metadata.get("channel_context"), "before": known}).decode()


runs: list[Brief] = []


@pytest.fixture
async def niyra(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Niyra]:
    """Whose worker has, by the name of the deployment's default agent, the one above."""
    runs.clear()
    agent = Own(tells_what_it_was_told, name="simulator")
    async with speaking(nats_address, tmp_path, agents=[agent]) as niyra:
        yield niyra


class Told(Struct):
    """What the agent said that it was told, and in which conversation."""

    channel: str | None
    before: list[dict[str, Json]]
    id: str = ""


async def told(niyra: Niyra, instruction: str, **more: Json) -> Told:
    body = (await niyra.execute(instruction=instruction, **more)).json()
    said = msgspec.json.decode(body["result"], type=Told)
    said.id = body["conversation_id"]
    return said


async def test_an_agent_knows_its_channel_and_what_was_said_before(niyra: Niyra):
    first = await told(niyra, "one", channel_context="from my CI pipeline")
    assert (first.channel, first.before) == ("from my CI pipeline", [])
    second = await told(niyra, "two", conversation_id=first.id)
    assert second.id == first.id
    said = '{"channel":"from my CI pipeline","before":[]}'
    assert second.before == [{"input": "one", "result": said}]
    third = await told(niyra, "three", conversation_id=first.id)
    assert third.before == [
        {"input": "one", "result": said},
        {"input": "two", "result": msgspec.json.encode({"channel": None, "before": second.before}).decode()},
    ]
    another = await told(niyra, "four", conversation_id=str(uuid4()))
    assert another.before == []


async def test_a_question_goes_on_with_a_conversation_too(niyra: Niyra):
    first = await told(niyra, "one")
    # Its tool is refused, but its agent was told.
    await niyra.api.client.post("/v1/public/ask", json={"question": "two?", "conversation_id": first.id})
    assert [one.input for one in runs[-1].conversation] == ["one"]


async def test_what_failed_before_has_no_result_and_what_runs_is_not_told(niyra: Niyra):
    first = await told(niyra, "one")
    wish: dict[str, Json] = {"input": "cancelled", "session_id": first.id, "agent": "simulator"}
    api = niyra.api
    cancelled = TaskId((await api.client.post("/tasks", json=wish)).json()["task_id"])
    await niyra.ended(cancelled)
    waiting = TaskId((await api.client.post("/tasks", json=wish | {"input": "fail"})).json()["task_id"])
    second = await told(niyra, "two", conversation_id=first.id)
    assert [one["input"] for one in second.before] == ["one", "cancelled"]
    await api.tell(waiting, CancelTask(by="ann"))
    third = await told(niyra, "three", conversation_id=first.id)
    assert {"input": "fail", "result": None} in third.before


async def test_a_run_that_begins_anew_is_told_the_same_whatever_was_said_since(niyra: Niyra):
    first = await told(niyra, "one")
    again = await told(niyra, "breaks once", conversation_id=first.id)
    told_twice = [one.conversation for one in runs if one.input == "breaks once"]
    assert len(told_twice) == 2
    assert told_twice[0] == told_twice[1]
    assert len(again.before) == 1


async def test_the_last_twenty_are_told(niyra: Niyra):
    conversation = str(uuid4())
    api = niyra.api
    for number in range(22):
        wish: dict[str, Json] = {"input": f"n{number}", "session_id": conversation}
        await api.client.post("/tasks", json=wish, headers={"Prefer": "wait=30"})
    last = await told(niyra, "last", conversation_id=conversation)
    assert [one["input"] for one in last.before] == [f"n{number}" for number in range(2, 22)]


async def test_another_owners_conversation_is_not_there(niyra: Niyra):
    first = await told(niyra, "one")
    async with niyra.bearer("pat_eve", "tasks:write", owner="eve") as eve:
        wish = {"instruction": "two", "conversation_id": first.id}
        body = (await eve.post("/v1/public/execute", json=wish)).json()
    assert msgspec.json.decode(body["result"]) == {"channel": None, "before": []}
