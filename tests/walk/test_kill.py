"""SIGKILL each process in turn under 200 running tasks: all end, once; no fact is lost, no recorded step runs again."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.walk.deployment import Deployment, deployment, insist

TASKS = 200
STREAMS = 10
SCENARIO = {
    "steps": [
        {"repeat": 8, "steps": [{"tool": "work", "takes": 0.4}, {"say": "so far so good. "}]},
        {"complete": "done"},
    ]
}
VICTIMS: list[Callable[[Deployment], object]] = [
    lambda deployed: deployed.kill("api"),  # first: every stream is still open then, however slow the machine
    lambda deployed: deployed.kill("worker"),
    lambda deployed: deployed.kill("nats-server"),
    lambda deployed: deployed.kill("projector"),
    lambda deployed: (deployed.kill_supervisor(), deployed.start()),
]


class Seen:
    """What one SSE client saw, over all its connections."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.frames: list[str] = []
        self.ended = False
        self.cuts = 0


@pytest.mark.timeout(300)
async def test_whatever_dies_every_task_ends_once_and_no_recorded_step_runs_again(tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    effects.touch()
    options = ("--effects", str(effects), "--worker-processes", "2", "--slots", "100", "--agent-limit", str(TASKS))
    with deployment(tmp_path, *options) as deployed:
        async with deployed.client() as client:
            created = await asyncio.gather(*(create(client, number) for number in range(TASKS)))
            # The last ones: on a busy machine the first may have ended before all are created.
            followed = created[-STREAMS:]
            streams = [asyncio.ensure_future(follow(client, task_id)) for task_id in followed]
            for hurt in VICTIMS:
                await at_work(client, created)
                await asyncio.to_thread(hurt, deployed)
            bodies = await asyncio.gather(*(to_its_end(client, task_id) for task_id in created))
            assert Counter(body["status"] for body in bodies) == {"completed": len(created)}
            histories = {task_id: await history(client, task_id) for task_id in created}
            seen = await asyncio.gather(*streams)
    for events in histories.values():
        check_history(events)
    check_effects(histories, effects)
    for one, task_id in zip(seen, followed, strict=True):
        events = histories[task_id]
        # Exactly once, in order, byte for byte: over whatever was cut in between.
        assert one.ids == [event["id"] for event in events]
        assert [json.loads(frame) for frame in one.frames] == [without_place(event) for event in events]
    assert sum(one.cuts for one in seen) >= STREAMS, "killing the API cut every stream at least once"


async def create(client: httpx.AsyncClient, number: int) -> str:
    """A task, asked for as often as it takes; all repeats are the same task."""
    body = {"input": SCENARIO, "max_failures": 50}
    answer = await insist(client, "POST", "/tasks", json=body, headers={"Idempotency-Key": f"kill-{number}"})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["task_id"])


async def at_work(client: httpx.AsyncClient, created: list[str]) -> None:
    """Return when something runs, if need be more than there was: whatever is killed now is killed under load."""
    while True:
        sample = [await insist(client, "GET", f"/tasks/{task_id}") for task_id in [*created[::20], created[-1]]]
        statuses = {answer.json()["status"] for answer in sample}
        if "running" in statuses:
            return
        if statuses == {"completed"}:  # the machine is busy, and killing takes longer than working
            created += await asyncio.gather(*(create(client, len(created) + number) for number in range(20)))
        await asyncio.sleep(0.05)


async def to_its_end(client: httpx.AsyncClient, task_id: str) -> dict[str, object]:
    """The task when it has ended."""
    for _ in range(120):
        answer = await insist(client, "GET", f"/tasks/{task_id}", headers={"Prefer": "wait=10"})
        if answer.json()["terminal"]:
            return answer.json()
    raise AssertionError(f"{task_id} never ended")


async def history(client: httpx.AsyncClient, task_id: str) -> list[dict[str, object]]:
    """Every record of the task."""
    page = (await insist(client, "GET", f"/tasks/{task_id}/events?limit=1000")).json()
    assert not page["has_more"]
    return page["data"]


async def follow(client: httpx.AsyncClient, task_id: str) -> Seen:
    """Stream a task to its end, coming back after each cut with the last id."""
    seen = Seen()
    while not seen.ended:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": seen.ids[-1]} if seen.ids else {})
        try:
            async with client.stream("GET", f"/tasks/{task_id}/events", headers=headers) as answer:
                if answer.status_code == 200:
                    await read_frames(answer, seen)
        except httpx.HTTPError:
            pass
        seen.cuts += not seen.ended
        await asyncio.sleep(0.05)
    return seen


async def read_frames(answer: httpx.Response, seen: Seen) -> None:
    """Whole frames only: one that is cut off in the middle did not come."""
    frame: dict[str, str] = {}
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            frame[name] = value
            continue
        if "data" in frame:
            seen.ids.append(frame["id"])
            seen.frames.append(frame["data"])
            seen.ended = frame["event"] in ("task.completed", "task.failed", "task.cancelled", "task.timed_out")
        frame = {}


def without_place(event: dict[str, object]) -> dict[str, object]:
    """The record as stored."""
    return {name: value for name, value in event.items() if name not in ("sequence", "id")}


def facts_of(events: list[dict[str, object]]) -> list[dict[str, object]]:
    """The facts alone."""
    facts = [event["fact"] for event in events]
    assert all(isinstance(fact, dict) for fact in facts)
    return facts  # pyright: ignore[reportReturnType]  # just asserted


def check_history(events: list[dict[str, object]]) -> None:
    """Versions are dense, the end is the last and only one, and no step is begun after it was recorded."""
    assert [event["version"] for event in events] == list(range(1, len(events) + 1))
    types = [str(fact["type"]) for fact in facts_of(events)]
    endings = [name for name in types if name in ("task.completed", "task.failed", "task.cancelled", "task.timed_out")]
    assert endings == ["task.completed"]
    assert types[-1] == "task.completed"
    finished: set[object] = set()
    for fact in facts_of(events):
        if fact["type"] == "task.step_started":
            assert fact["step"] not in finished, "a recorded step was begun again"
        if fact["type"] in ("task.tool_used", "task.step_finished"):
            assert fact["step"] not in finished, "a step was recorded twice"
            finished.add(fact["step"])
    assert len(finished) == 16


def check_effects(histories: dict[str, list[dict[str, object]]], effects: Path) -> None:
    """Counted outside the log: a tool acted at most once for each time that the log says it was begun."""
    acted = Counter(line.split()[1] for line in effects.read_text().splitlines())
    begun: Counter[str] = Counter()
    for task_id, events in histories.items():
        begun.update(f"{task_id}:{fact['step']}" for fact in facts_of(events) if fact["type"] == "task.step_started")
    assert set(acted) <= set(begun)
    assert all(acted[key] <= begun[key] for key in acted), "a tool acted without the log's saying so"
    assert len(acted) == len(histories) * 8, "every tool's step acted"
