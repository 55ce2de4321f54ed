"""Shannon's events of each fact, the pages that list them, the timeline, and what was too large for an event."""

from collections.abc import Sequence
from datetime import datetime
from typing import get_args

import pytest

from app.commands import CancelTask, CompleteTask, FinishStep
from app.dialects.shannon_events import approval_id, approved_step, events_of
from app.dialects.shannon_frames import SSE_NAMES, Event, RawType, raw, sse_frame
from eventstore.events import (
    InputReceived,
    Json,
    StepFinished,
    StepStarted,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFact,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    UnknownFact,
    Usage,
)
from tests.api import Api
from tests.dialects.shannon import PREFIX
from tests.given import (
    cancelled,
    completed,
    created,
    failed,
    fold,
    history,
    input_requested,
    partial,
    pause_requested,
    plan_proposed,
    queued,
    review_decided,
    review_requested,
    run_failed,
    started,
    step_finished,
    step_started,
    timed_out,
    tool_used,
)
from tests.lifecycle.commands import complete, finish_step, produce, start_run, start_step
from tests.log.logs import ANN

TASKS = f"{PREFIX}/api/v1/tasks"


def told(*facts: TaskFact | UnknownFact) -> list[list[Event]]:
    """The events of each of these."""
    task = fold(*facts)
    return [events_of(one, task) for one in history(*facts)]


ENDING: dict[str, tuple[TaskFact, Sequence[RawType]]] = {
    "completed": (
        TaskCompleted(run=1, result="done"),
        ["LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED", "STREAM_END"],
    ),
    "completed with nothing": (TaskCompleted(run=1), ["AGENT_COMPLETED", "WORKFLOW_COMPLETED", "STREAM_END"]),
    "failed": (failed(), ["ERROR_OCCURRED", "WORKFLOW_FAILED", "STREAM_END"]),
    "cancelled": (cancelled(), ["WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED", "STREAM_END"]),
    "timed out": (timed_out(), ["ERROR_OCCURRED", "WORKFLOW_FAILED", "STREAM_END"]),
}
ONE: list[tuple[TaskFact | UnknownFact, RawType]] = [
    (created(), "WORKFLOW_STARTED"),
    (queued(), "WAITING"),
    (started(), "AGENT_STARTED"),
    (step_started(), "TOOL_INVOKED"),
    (tool_used(), "TOOL_OBSERVATION"),
    (step_finished(), "PROGRESS"),
    (StepFinished(run=1, step=0, kind="effect", name="mail"), "TOOL_OBSERVATION"),
    (StepFinished(run=1, step=0, kind="text", message="so be it"), "LLM_OUTPUT"),
    (partial("x"), "LLM_PARTIAL"),
    (plan_proposed(), "AGENT_THINKING"),
    (plan_proposed(needs_approval=True), "RESEARCH_PLAN_READY"),
    (input_requested(), "WAITING"),
    (InputReceived(text="blue", step=0), "HITL_RESPONSE"),
    (InputReceived(text="hurry"), "MESSAGE_RECEIVED"),
    (review_requested(), "APPROVAL_REQUESTED"),
    (review_decided(0), "APPROVAL_DECISION"),
    (pause_requested(), "WORKFLOW_PAUSING"),
    (TaskPaused(), "WORKFLOW_PAUSED"),
    (TaskResumed(), "WORKFLOW_RESUMED"),
    (run_failed(), "ERROR_RECOVERY"),
    (UnknownFact(tag="task.dreamt", fields={}), "STATUS_UPDATE"),
]


@pytest.mark.parametrize(("fact", "kind"), ONE, ids=[f"{kind}-{n}" for n, (_, kind) in enumerate(ONE)])
def test_a_fact_that_is_no_end_is_one_event(fact: TaskFact | UnknownFact, kind: RawType) -> None:
    *_, [event] = told(*([] if isinstance(fact, TaskCreated) else [created()]), fact)
    assert event.type == kind
    assert event.agent_id == "simulator"
    assert event.message


@pytest.mark.parametrize("end", ENDING)
def test_an_end_is_several_and_their_numbers_go_on(end: str) -> None:
    fact, kinds = ENDING[end]
    story = [event for events in told(created(), started(), fact) for event in events]
    assert [event.type for event in story[2:]] == kinds
    assert [event.seq for event in story] == list(range(1, len(story) + 1))
    places, ids = zip(*(map(int, event.stream_id.split("-")) for event in story), strict=True)
    assert places == (7, 10, *(13 for _ in kinds))
    assert ids[2:] == tuple(range(ids[2], ids[2] + len(kinds)))


def test_what_a_client_needs_of_an_event_is_in_it() -> None:
    usage = Usage(provider="p", model="m", input_tokens=2, output_tokens=3, cost=0.5)
    context: dict[str, Json] = {"context": {"role": "critic"}}
    facts = (
        TaskCreated(agent="simulator", fingerprint="f", metadata=context),
        TaskStarted(run=2, worker="w", lost=True),
        StepStarted(run=2, step=0, kind="tool", name="search", input={"q": "tides"}),
        StepFinished(run=2, step=1, kind="usage", usage=usage),
        review_requested(2),
        review_decided(2, approved=False),
        TaskPaused(reason="lunch"),
        TaskCancelled(by="ann", was_paused=True),
    )
    [born], [begun], [invoked], [counted], [asked], [decided], [paused], [_, gone, _] = told(*facts)
    assert born.payload == {"task_context": {"role": "critic"}}
    assert begun.payload == {"run": 2, "lost": True}
    assert invoked.payload == {"tool": "search", "params": {"q": "tides"}, "step": 0}
    assert invoked.message == '{"tool":"search","params":{"q":"tides"}}'
    assert counted.payload["tokens_used"] == 5
    assert asked.payload["approval_id"] == decided.payload["approval_id"] == approval_id(2)
    assert (decided.payload["approved"], decided.message) == (False, "Refused")
    assert (paused.message, paused.payload) == ("lunch", {"checkpoint": "version-7"})
    assert gone.payload == {"checkpoint": "version-8", "was_paused": True}
    [*_, (output, *_)] = told(created(), StepFinished(run=1, step=0, kind="usage", usage=usage), completed())
    assert output.payload == {
        **{"tokens_used": 5, "input_tokens": 2, "output_tokens": 3},
        **{"cost_usd": 0.5, "model_used": "m", "provider": "p"},
    }


def test_a_decision_names_a_step() -> None:
    assert approved_step(approval_id(12)) == 12
    for bad in ("", "approval-", "approval--1", "approval-x", "12", "approval-" + "1" * 30, "approval-\u00b2"):
        assert approved_step(bad) is None


def test_an_event_is_one_line_for_readers_that_split_as_unicode_does() -> None:
    separators = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b"
    for event in told(created(), partial(separators))[1]:
        assert raw(event).decode().splitlines() == [raw(event).decode()]
        assert len(sse_frame(event).decode().splitlines()) == 4


def test_names_of_streams_are_of_types_that_there_are() -> None:
    assert SSE_NAMES.keys() <= set(get_args(RawType))


async def test_events_are_listed_by_pages_and_each_has_its_time(api: Api):
    task_id = await api.begin(start_run(), start_step(), finish_step(kind="tool", name="search"), complete())
    page = (await api.client.get(f"{TASKS}/{task_id}/events")).json()
    types = [event["type"] for event in page["events"]]
    ends = ["LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED", "STREAM_END"]
    assert types == ["WORKFLOW_STARTED", "AGENT_STARTED", "TOOL_INVOKED", "TOOL_OBSERVATION", *ends]
    assert page["count"] == 8
    assert all(datetime.fromisoformat(event["timestamp"]).tzinfo for event in page["events"])
    assert all(event["workflow_id"] == task_id for event in page["events"])
    part = (await api.client.get(f"{TASKS}/{task_id}/events?limit=3&offset=2")).json()
    assert part == {"events": page["events"][2:5], "count": 3}
    assert (await api.client.get(f"{TASKS}/{task_id}/events?offset=99")).json() == {"events": [], "count": 0}
    for name, bad in (("limit", "0"), ("limit", "201"), ("limit", "x"), ("limit", "-1"), ("offset", "-1")):
        answer = await api.client.get(f"{TASKS}/{task_id}/events?{name}={bad}")
        assert (answer.status_code, answer.json()) == (400, {"error": f"Invalid {name} parameter"})
    for query in ("?offset=999999999999999999", "?limit=200", "?limit=&offset="):
        assert (await api.client.get(f"{TASKS}/{task_id}/events{query}")).status_code == 200
    answer = await api.client.get(f"{TASKS}/a%20b/events")
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid task ID format"})


async def test_a_page_of_large_events_ends_early_and_the_next_goes_on(api: Api):
    task_id = await api.begin(start_run())
    for step in range(24):
        output = {"text": f"{step}" + "x" * 200_000}
        await api.tell(task_id, FinishStep(run=1, step=step, kind="tool", name="search", output=output))
    seen: list[dict[str, object]] = []
    while page := (await api.client.get(f"{TASKS}/{task_id}/events?offset={len(seen)}")).json()["events"]:
        seen += page
    assert [event["seq"] for event in seen] == list(range(1, 27))


async def test_the_timeline_tells_the_same_life_as_a_workflow_engine_would(api: Api):
    steps = [start_run(), start_step(), finish_step(kind="tool", name="search"), produce("x", step=1)]
    task_id = await api.begin(*steps, CancelTask(by="ann", reason="no need"))
    told = (await api.client.get(f"{TASKS}/{task_id}/timeline")).json()
    types = [event["type"] for event in told["events"]]
    assert types == ["WF_STARTED", "CHILD_STARTED", "ACT_COMPLETED", "WF_CANCELLED"]
    assert (told["workflow_id"], told["stats"]) == (task_id, {"total": 4, "mode": "summary"})
    assert told["events"][0].keys() == {"id", "workflow_id", "type", "message", "timestamp", "seq", "created_at"}
    full = (await api.client.get(f"{TASKS}/{task_id}/timeline?mode=full&include_payloads=true")).json()
    assert [event["type"] for event in full["events"]] == [*types[:2], "ACT_STARTED", types[2], "EVENT", types[3]]
    assert full["stats"] == {"total": 6, "mode": "full"}
    assert full["events"][-1]["payload"]["reason"] == "no need"
    kept = await api.client.get(f"{TASKS}/{task_id}/timeline?persist=true")
    assert (kept.status_code, kept.json()) == (202, {"status": "accepted", "workflow_id": task_id, "count": 4})


async def test_a_tools_large_output_is_not_said_to_be_none(api: Api):
    observed = FinishStep(run=1, step=0, kind="tool", name="search", output="x" * 300_000)
    task_id = await api.begin(start_run(), observed)
    events = (await api.client.get(f"{TASKS}/{task_id}/events")).json()["events"]
    event = next(event for event in events if event["type"] == "TOOL_OBSERVATION")
    assert event["message"].startswith("(The output is too large for an event, 300013 bytes: GET /api/v1/blob/")
    assert "output" not in event["payload"]
    answer = await api.client.get(f"{PREFIX}/api/v1/blob/{event['payload']['blob']['key']}")
    assert answer.text == "x" * 300_000


async def test_what_was_too_large_for_an_event_is_found_by_the_key_that_it_names(api: Api):
    result = "\u00e9" * 300_000
    task_id = await api.begin(start_run(), CompleteTask(run=1, result=result))
    events = (await api.client.get(f"{TASKS}/{task_id}/events")).json()["events"]
    output = next(event for event in events if event["type"] == "LLM_OUTPUT")
    assert output["payload"]["blob"]["fields"] == ["result"]
    key = output["payload"]["blob"]["key"]
    assert output["message"].startswith("(The result is too large for an event, 600013 bytes: GET /api/v1/blob/")
    assert key in output["message"]
    answer = await api.client.get(f"{PREFIX}/api/v1/blob/{key}")
    assert (answer.text, answer.headers["Content-Type"]) == (result, "text/plain; charset=utf-8")
    await api.rooms.tokens.add("tt_ann", ANN, ("tasks:read",))
    unknown = [(key, "tt_ann"), (key[:-1], api.token), ("x", api.token), (f"{task_id}:", api.token)]
    for asked, token in unknown:
        answer = await api.client.get(f"{PREFIX}/api/v1/blob/{asked}", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()) == (404, {"error": "Blob not found"}), asked
