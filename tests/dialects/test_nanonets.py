"""Nanonets' API, row by row of its contract, with a worker at work."""

from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import UUID

import pytest

from app.commands import CancelTask
from eventstore.connection import NatsAddress
from eventstore.events import Json, TaskId
from tests.dialects.nanonets import AGENTS, RUN, TASKS, Nanonets, speaking
from tests.dialects.niyra import scenario

LONG_S = 3_600
POLLED = {"task_id", "agent_id", "status", "title", "created_at", "updated_at"}


@pytest.fixture
async def nanonets(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Nanonets]:
    async with speaking(nats_address, tmp_path) as nanonets:
        yield nanonets


async def test_a_run_is_answered_at_once_and_ends_with_a_summary(nanonets: Nanonets):
    begun = await nanonets.api.client.post(RUN, json={"query": scenario({"sleep": 0.3}, {"complete": "Done."})})
    body = begun.json()
    assert begun.status_code == 200
    assert body.keys() == {"task_id", "agent_id", "status", "message", "created_at"}
    assert (body["status"], str(UUID(body["task_id"]))) == ("pending", body["task_id"])
    early = await nanonets.get(body["task_id"], "/summary")
    assert early.status_code == 409
    assert early.json().keys() == {"error", "status"}
    polled = await nanonets.reach(body["task_id"], "completed")
    assert polled.keys() == POLLED
    assert polled.items() >= {name: body[name] for name in ("task_id", "agent_id", "created_at")}.items()
    summary = (await nanonets.get(body["task_id"], "/summary")).json()
    assert summary.keys() == {"task_id", "agent_id", "status", "summary", "completed_at"}
    assert (summary["status"], summary["summary"]) == ("completed", "Done.")


async def test_all_of_it_is_under_its_prefix_and_at_both_of_its_own_paths_too(nanonets: Nanonets):
    task_id = await nanonets.run({"complete": "Done."})
    expected = await nanonets.reach(task_id, "completed")
    client = nanonets.api.client
    for root in ("/v1", "/nanonets/api/v1", "/nanonets/v1"):
        assert (await client.get(f"{root}/tasks/{task_id}")).json() == expected
        assert (await client.get(f"{root}/tasks/task_{task_id.upper()}")).json() == expected
        assert (await client.get(f"{root}/tasks/{task_id}/summary")).json()["summary"] == "Done."
        again = await client.post(f"{root}/agents/simulator/run", json={"query": scenario({"complete": "Again."})})
        assert again.status_code == 200
        assert (await client.get(f"{root}/agents")).json() == (await client.get(AGENTS)).json()


async def test_a_question_is_answered_by_a_message(nanonets: Nanonets):
    task_id = await nanonets.run({"say": "Hello."}, {"ask": "For whom?"}, {"complete": "For {answer}."})
    await nanonets.reach(task_id, "waiting_for_input")
    said = (await nanonets.get(task_id, "/messages")).json()["data"]
    assert all(message.keys() == {"id", "task_id", "agent_id", "role", "content", "created_at"} for message in said)
    assert [message["role"] for message in said] == ["user", "assistant", "assistant"]
    assert said[-1]["content"] == "For whom?"
    answered = await nanonets.say(task_id, "Ann")
    assert (answered.status_code, answered.json()["status"]) == (200, "running")
    await nanonets.reach(task_id, "completed")
    said = (await nanonets.get(task_id, "/messages")).json()["data"]
    assert [message["content"] for message in said[1:]] == ["Hello.", "For whom?", "Ann", "For Ann."]
    assert said == sorted(said, key=lambda message: message["created_at"])
    assert len({UUID(message["id"]) for message in said}) == len(said)


async def test_a_result_that_was_said_in_pieces_is_not_said_again(nanonets: Nanonets):
    lives: list[tuple[list[Json], list[str]]] = [
        ([{"say": "One. "}, {"tool": "look"}, {"say": "Two."}, {"complete": "One. Two."}], ["One. ", "Two."]),
        ([{"say": "One."}, {"say": "Two."}, {"complete": "One. Two."}], ["One.", "Two."]),
        ([{"say": "One. "}, {"say": "Two."}, {"complete": "Three."}], ["One. ", "Two.", "Three."]),
        ([{"say": "One. "}, {"say": "Two."}, {"complete": "Two."}], ["One. ", "Two."]),
        ([{"complete": "One."}], ["One."]),
    ]
    for steps, told in lives:
        task_id = await nanonets.run(*steps)
        await nanonets.reach(task_id, "completed")
        said = (await nanonets.get(task_id, "/messages")).json()["data"]
        assert [message["content"] for message in said[1:]] == told
    asking = await nanonets.run(
        {"say": "Hello. "}, {"ask": "Go on?"}, {"say": "One. "}, {"say": "Two."}, {"complete": "One. Two."}
    )
    await nanonets.reach(asking, "waiting_for_input")
    await nanonets.say(asking, "Yes")
    await nanonets.reach(asking, "completed")
    said = (await nanonets.get(asking, "/messages")).json()["data"]
    assert [message["content"] for message in said[1:]] == ["Hello. ", "Go on?", "Yes", "One. ", "Two."]


async def test_what_awaits_a_review_takes_no_message_and_says_who_decides(nanonets: Nanonets):
    task_id = await nanonets.run({"review": "Send it?"}, {"complete": "Sent."})
    await nanonets.reach(task_id, "awaiting_review")
    before = (await nanonets.get(task_id, "/result")).content
    refused = await nanonets.say(task_id, "Yes, send it.")
    assert (refused.status_code, refused.json()["status"]) == (409, "awaiting_review")
    assert f"POST /tasks/task_{task_id}/review" in refused.json()["error"]
    assert (await nanonets.get(task_id, "/result")).content == before
    await nanonets.api.client.post(f"/tasks/task_{task_id}/review", json={"approved": True})
    await nanonets.reach(task_id, "completed")


async def test_a_message_is_taken_while_it_runs_and_not_after_the_end(nanonets: Nanonets):
    task_id = await nanonets.run({"sleep": LONG_S})
    await nanonets.reach(task_id, "running")
    answer = await nanonets.say(task_id, "Hurry.")
    assert (answer.status_code, answer.json()["status"]) == (200, "running")
    assert (await nanonets.get(task_id, "/messages")).json()["data"][-1]["content"] == "Hurry."
    await nanonets.api.client.post(f"{TASKS}/{task_id}/cancel")
    late = await nanonets.say(task_id, "Too late.")
    assert (late.status_code, late.json().keys()) == (409, {"error"})


async def test_a_cancelled_task_is_stopped_and_cancelling_again_is_no_error(nanonets: Nanonets):
    task_id = await nanonets.run({"say": "so far"}, {"sleep": LONG_S})
    await nanonets.reach(task_id, "running")
    answers = [await nanonets.api.client.post(f"{TASKS}/{task_id}/cancel") for _ in range(3)]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(200, "stopped")] * 3
    assert len({answer.content for answer in answers}) == 1
    done = await nanonets.run({"complete": "Done."})
    await nanonets.reach(done, "completed")
    late = await nanonets.api.client.post(f"{TASKS}/{done}/cancel")
    assert (late.status_code, late.json()["status"]) == (200, "completed")
    refused = await nanonets.get(task_id, "/summary")
    assert (refused.status_code, refused.json()["status"]) == (409, "stopped")


async def test_the_result_is_all_that_was_done_in_order_in_any_state(nanonets: Nanonets):
    task_id = await nanonets.run(
        {"tool": "search", "output": {"hits": 2}}, {"say": "Two."}, {"fail": {"code": "no_luck"}}
    )
    await nanonets.reach(task_id, "failed")
    told = (await nanonets.get(task_id, "/result")).json()
    assert told.keys() == {"task_id", "agent_id", "status", "feed", "error"}
    assert told["error"] == {"code": "no_luck", "message": "the scenario says so"}
    events = (await nanonets.api.client.get(f"/tasks/{task_id}/events")).json()["data"]
    assert [item["type"] for item in told["feed"]] == [event["fact"]["type"] for event in events]
    assert [item["sequence"] for item in told["feed"]] == [event["sequence"] for event in events]
    tool = next(item for item in told["feed"] if item["type"] == "task.tool_used")
    assert (tool["tool"], tool["output"]) == ("search", {"hits": 2})
    waiting = await nanonets.run({"ask": "Well?"})
    await nanonets.reach(waiting, "waiting_for_input")
    told = (await nanonets.get(waiting, "/result")).json()
    assert told.keys() == {"task_id", "agent_id", "status", "feed"}
    assert (told["status"], told["feed"][-1]["question"]) == ("waiting_for_input", "Well?")


async def test_a_long_and_a_large_feed_are_whole(nanonets: Nanonets):
    large = "x" * 300_000
    task_id = await nanonets.run(
        {"repeat": 150, "steps": [{"tool": "look", "output": "y" * 1_000}]}, {"tool": "read", "output": large}
    )
    await nanonets.reach(task_id, "completed")
    feed = (await nanonets.get(task_id, "/result")).json()["feed"]
    assert [item["step"] for item in feed if item["type"] == "task.tool_used"] == list(range(151))
    assert feed[-2]["output"] == large


async def test_a_result_that_is_an_object_is_extracted_where_a_schema_asked_for_it(nanonets: Nanonets):
    config = {"output_schema": {"type": "object"}, "instructions": "Be brief."}
    for result, wanted, extracted in (
        ('{"total": 5}', config, {"total": 5}),
        ('{"total": 5}', None, None),
        ('["no object"]', config, None),
        ("no JSON", config, None),
    ):
        task_id = await nanonets.run({"complete": result}, output_config=wanted)
        await nanonets.reach(task_id, "completed")
        summary: dict[str, Json] = (await nanonets.get(task_id, "/summary")).json()
        assert (summary["summary"], summary.get("extracted_data")) == (result, extracted)
    task = (await nanonets.api.client.get(f"/tasks/{task_id}")).json()
    assert task["metadata"] == config


async def test_a_poll_that_knows_the_version_costs_no_body_and_says_when_to_come_again(nanonets: Nanonets):
    task_id = await nanonets.run({"sleep": LONG_S})
    await nanonets.reach(task_id, "running")
    first = await nanonets.get(task_id)
    assert int(first.headers["Retry-After"]) >= 2
    known = {"If-None-Match": first.headers["ETag"]}
    assert (await nanonets.api.client.get(f"{TASKS}/{task_id}", headers=known)).status_code == 304
    await nanonets.api.client.post(f"{TASKS}/{task_id}/cancel")
    ended = await nanonets.api.client.get(f"{TASKS}/{task_id}", headers=known)
    assert (ended.status_code, "Retry-After" in ended.headers) == (200, False)


async def test_a_repeat_under_the_same_key_is_the_same_task(nanonets: Nanonets):
    client, key = nanonets.api.client, {"Idempotency-Key": "run-1"}
    query = {"query": scenario({"complete": "Done."})}
    first, again = [await client.post(RUN, json=query, headers=key) for _ in range(2)]
    assert first.json()["task_id"] == again.json()["task_id"]
    assert again.headers["Idempotency-Replayed"] == "true"
    other = await client.post(RUN, json={"query": "another"}, headers=key)
    assert (other.status_code, other.json().keys()) == (409, {"error"})


async def test_agents_are_named_by_their_uuid_or_their_name(nanonets: Nanonets):
    client = nanonets.api.client
    listed = (await client.get(AGENTS)).json()
    assert listed.keys() == {"data", "has_more", "next_cursor"}
    (agent,) = listed["data"]
    assert {"id", "name", "is_active", "created_at", "updated_at"} <= agent.keys()
    assert (agent["name"], agent["is_active"], UUID(agent["id"]).version) == ("simulator", True, 5)
    for named in (agent["id"], agent["id"].upper(), "simulator"):
        assert (await client.get(f"{AGENTS}/{named}")).json() == agent
        begun = await client.post(f"{AGENTS}/{named}/run", json={"query": scenario({"complete": "x"})})
        assert begun.json()["agent_id"] == agent["id"]


async def test_a_list_has_the_tasks_of_a_status_an_agent_a_time_and_a_title(nanonets: Nanonets):
    client, api = nanonets.api.client, nanonets.api
    ids = [await nanonets.run({"ask": f"Question {number}?"}) for number in range(5)]
    for task_id in ids:
        await nanonets.reach(task_id, "waiting_for_input")
    await nanonets.say(ids[0], "so")
    await nanonets.reach(ids[0], "completed")
    await api.tell(TaskId(f"task_{ids[1]}"), CancelTask(by="dev"))
    await api.rooms.lists.reach(await api.rooms.tasks.log.last_sequence())

    async def listed(**asked: str | int) -> list[str]:
        found: list[str] = []
        while True:
            page = (await client.get(TASKS, params=asked)).json()
            assert page.keys() == {"data", "has_more", "next_cursor"}
            assert all(item.keys() == POLLED for item in page["data"])
            found += [item["task_id"] for item in page["data"]]
            if not page["has_more"]:
                return found
            asked["cursor"] = page["next_cursor"]

    assert await listed() == ids[::-1]
    assert await listed(limit=2) == ids[::-1]
    assert await listed(status="waiting_for_input", limit=1) == ids[:1:-1]
    assert await listed(status="completed,stopped") == ids[1::-1]
    assert await listed(status="running") == []
    assert await listed(q="question 3") == [ids[3]]
    assert await listed(agent_id="simulator") == ids[::-1]
    agent_id = (await nanonets.get(ids[0])).json()["agent_id"]
    assert await listed(agent_id=agent_id, created_after="2000-01-01T00:00:00Z") == ids[::-1]
    assert await listed(created_before="2000-01-01T00:00:00Z") == []
