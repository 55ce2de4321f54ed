"""One task from POST to SSE, through every process of a real deployment."""

import json
from pathlib import Path

from tests.walk.deployment import deployment
from tests.walk.test_kill import Seen, read_frames

EVERY_STATUS = {
    "steps": [
        {"plan": ["search"]},
        {"tool": "search", "input": {"q": "tides"}, "output": {"hits": 2}},
        {"say": "Two hits. "},
        {"ask": "For whom?"},
        {"review": "the brief"},
        {"usage": {"provider": "p", "model": "m", "input_tokens": 10, "output_tokens": 5, "cost": 0.25}},
        {"complete": "for {answer}"},
    ]
}
FACTS = [
    "task.created",
    "task.started",
    "task.plan_proposed",
    "task.step_started",
    "task.tool_used",
    "task.partial",
    "task.step_finished",
    "task.input_requested",
    "task.input_received",
    "task.started",
    "task.review_requested",
    "task.review_decided",
    "task.started",
    "task.step_finished",
    "task.completed",
]


async def test_poll_page_and_stream_tell_one_story_of_a_task_that_asks_and_is_answered(tmp_path: Path) -> None:
    with deployment(tmp_path) as deployed:
        async with deployed.client() as client:
            created = await client.post("/tasks", json={"input": EVERY_STATUS}, headers={"Prefer": "wait=10"})
            assert created.status_code == 201
            path = created.headers["Location"]
            assert created.json()["status"] == "waiting_for_input"
            assert created.json()["question"] == "For whom?"
            answered = await client.post(f"{path}/messages", json={"text": "Ada"})
            version = answered.headers["ETag"]
            while (body := (await client.get(path)).json())["status"] != "awaiting_review":
                changed = await client.get(path, headers={"If-None-Match": version, "Prefer": "wait=10"})
                version = changed.headers["ETag"]
            assert body["review"] == "the brief"
            await client.post(f"{path}/review", json={"approved": True})
            seen = Seen()
            async with client.stream("GET", f"{path}/events", headers={"Accept": "text/event-stream"}) as stream:
                await read_frames(stream, seen)
            final = (await client.get(path)).json()
            page = (await client.get(f"{path}/events")).json()
    assert [json.loads(frame)["fact"]["type"] for frame in seen.frames] == FACTS
    assert [event["fact"]["type"] for event in page["data"]] == FACTS
    assert seen.ids == [event["id"] for event in page["data"]]
    assert final["status"] == "completed"
    assert final["result"] == "for Ada"
    assert (final["version"], final["sequence"]) == (len(FACTS), page["data"][-1]["sequence"])
    assert (final["run"], final["failures"], final["tools_used"]) == (3, 0, ["search"])
    assert final["partial_text"] == "Two hits. "
    assert final["usage"] == {"provider": "p", "model": "m", "input_tokens": 10, "output_tokens": 5, "cost": 0.25}
    assert {event["actor"].split("/")[0] for event in page["data"]} == {"dev", "worker"}
    assert len({event["correlation_id"] for event in page["data"]}) == 1
