"""The client that Shannon publishes, unmodified, against our API: every method about tasks, and what becomes of the
others. docs/reference/shannon-sdk.md lists them all."""

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from shannon import AsyncShannonClient, ShannonClient, errors
from shannon.models import TaskHandle, TaskStatusEnum

from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.dialects.shannon import Shannon, speaking
from tests.worker.house import SOON_S

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "shannon-sdk.md"


@pytest.fixture
async def shannon(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    async with speaking(nats_address, tmp_path) as shannon:
        yield shannon


@pytest.fixture
async def sdk(shannon: Shannon) -> AsyncGenerator[AsyncShannonClient]:
    async with AsyncShannonClient(shannon.address, api_key=shannon.api.token) as sdk:
        yield sdk


def playing(*steps: Json, **context: Json) -> dict[str, Json]:
    """The context of a task that plays these steps."""
    return {"scenario": {"steps": list(steps)}, **context}


async def test_a_task_is_submitted_waited_for_and_listed(sdk: AsyncShannonClient):
    usage: Json = {"usage": {"provider": "p", "model": "m", "input_tokens": 2, "output_tokens": 1, "cost": 0.5}}
    context = playing(usage, {"complete": "Paris."})
    handle = await sdk.submit_task("Capital?", session_id="s1", context=context, mode="simple", idempotency_key="k")
    again = await sdk.submit_task("Capital?", session_id="s1", context=context, mode="simple", idempotency_key="k")
    assert (handle.task_id, handle.workflow_id, handle.session_id) == (again.task_id, handle.task_id, "s1")
    done = await sdk.wait(handle.task_id, timeout=SOON_S, poll_interval=0.05)
    assert (done.status, done.result, done.error_message) == (TaskStatusEnum.COMPLETED, "Paris.", "")
    assert (done.query, done.session_id, done.mode) == ("Capital?", "s1", "EXECUTION_MODE_SIMPLE")
    assert (done.model_used, done.provider, done.context) == ("m", "p", context)
    assert done.usage == {"total_tokens": 3, "input_tokens": 2, "output_tokens": 1, "estimated_cost": 0.5}
    assert done.created_at is not None
    assert done.updated_at is not None
    assert done.created_at < done.updated_at
    tasks, total = await sdk.list_tasks(status="completed", session_id="s1")
    assert (total, [one.task_id for one in tasks]) == (1, [handle.task_id])
    assert (tasks[0].status, tasks[0].query) == ("TASK_STATUS_COMPLETED", "Capital?")
    assert tasks[0].total_token_usage is not None
    assert tasks[0].total_token_usage.total_tokens == 3


async def test_a_task_is_submitted_to_be_streamed(sdk: AsyncShannonClient):
    handle, url = await sdk.submit_and_stream("x", context=playing({"complete": "x"}), force_swarm=True)
    assert url == f"/api/v1/stream/sse?workflow_id={handle.task_id}"
    assert (await sdk.wait(handle.task_id, poll_interval=0.05)).context is not None


async def test_a_task_that_fails_says_why(sdk: AsyncShannonClient):
    handle = await sdk.submit_task("x", context=playing({"fail": {"message": "no luck"}}))
    failed = await sdk.wait(handle.task_id, timeout=SOON_S, poll_interval=0.05)
    assert (failed.status, failed.error_message) == (TaskStatusEnum.FAILED, "no luck")


async def test_a_task_is_paused_resumed_told_and_cancelled(shannon: Shannon, sdk: AsyncShannonClient):
    handle = await sdk.submit_task("x", context=playing({"ask": "?"}, {"ask": "And?"}))
    task_id = handle.task_id
    await shannon.until(task_id, "waiting_for_input")
    assert await sdk.pause_task(task_id, "lunch") is True
    paused = await sdk.get_control_state(task_id)
    assert (paused.is_paused, paused.pause_reason, paused.is_cancelled) == (True, "lunch", False)
    assert paused.paused_at is not None
    assert (await sdk.get_status(task_id)).status == TaskStatusEnum.PAUSED
    with pytest.raises(errors.ServerError, match="already paused"):
        await sdk.pause_task(task_id)
    assert await sdk.resume_task(task_id) is True
    with pytest.raises(errors.ServerError, match="not paused"):
        await sdk.resume_task(task_id)
    told = await sdk.send_swarm_message(task_id, "blue")
    assert (told.success, told.status) == (True, "sent")
    with pytest.raises(errors.TaskTimeoutError):
        await sdk.wait(task_id, timeout=0.2, poll_interval=0.1)
    assert await sdk.cancel(task_id, "too late") is True
    assert (await sdk.get_control_state(task_id)).cancel_reason == "too late"
    assert (await sdk.wait(task_id, timeout=SOON_S)).status == TaskStatusEnum.CANCELLED


async def test_what_awaits_approval_is_approved_or_refused(shannon: Shannon, sdk: AsyncShannonClient):
    ends = {True: TaskStatusEnum.COMPLETED, False: TaskStatusEnum.FAILED}
    for approved, end in ends.items():
        handle = await sdk.submit_task("x", context=playing({"review": "Send it?"}))
        await shannon.until(handle.task_id, "awaiting_review")
        assert await sdk.approve("approval-0", handle.task_id, approved=approved, feedback="so") is True
        assert (await sdk.wait(handle.task_id, timeout=SOON_S, poll_interval=0.05)).status == end
    with pytest.raises(errors.ShannonError, match="Workflow or approval not found"):
        await sdk.approve("approval-0", "task_abc123")


async def test_a_plan_is_talked_over_and_approved(shannon: Shannon, sdk: AsyncShannonClient):
    context = playing({"plan": ["search"]}, {"complete": "x"}, force_research=True, require_review=True)
    handle = await sdk.submit_task("Tides?", context=context)
    task_id = handle.task_id
    await shannon.until(task_id, "awaiting_review")
    review = await sdk.get_review_state(task_id)
    assert (review.status, review.round, review.version, review.query) == ("reviewing", 1, 1, "Tides?")
    assert review.current_plan == "1. search"
    with pytest.raises(errors.ValidationError):
        await sdk.submit_review_feedback(task_id, "Less.", version=5)
    heard = await sdk.submit_review_feedback(task_id, "Less.", version=1)
    assert (heard.status, heard.round, heard.version) == ("reviewing", 2, 2)
    assert [(one.role, one.message) for one in heard.rounds] == [("assistant", "1. search"), ("user", "Less.")]
    assert all(one.timestamp is not None for one in heard.rounds)
    approved = await sdk.approve_review(task_id, version=2)
    assert approved["status"] == "approved"
    assert (await sdk.wait(task_id, timeout=SOON_S, poll_interval=0.05)).status == TaskStatusEnum.COMPLETED
    with pytest.raises(errors.TaskNotFoundError):
        await sdk.get_review_state("task_abc123")


async def test_refusals_are_the_sdks_own_errors(shannon: Shannon, sdk: AsyncShannonClient):
    with pytest.raises(errors.TaskNotFoundError, match="Task not found"):
        await sdk.get_status("task_abc123")
    with pytest.raises(errors.ValidationError, match="Unknown agent"):
        await sdk.submit_task("x", context={"agent": "bond"})
    with pytest.raises(errors.ValidationError, match="Invalid status value"):
        await sdk.list_tasks(status="PAUSED")
    async with AsyncShannonClient(shannon.address, api_key="sk_wrong_key") as stranger:
        with pytest.raises(errors.AuthenticationError, match="Unauthorized"):
            await stranger.get_status("task_abc123")


async def test_health_and_routes_are_told(sdk: AsyncShannonClient):
    assert (await sdk.health())["status"] == "healthy"
    assert (await sdk.readiness())["status"] == "ready"
    assert (await sdk.get_openapi_spec())["openapi"] == "3.1.0"


async def test_the_blocking_client_does_the_same(shannon: Shannon):
    def work() -> tuple[TaskStatusEnum, str | None, bool]:
        try:
            with ShannonClient(shannon.address, bearer_token=shannon.api.token) as sdk:
                handle = sdk.submit_task("x", context=playing({"complete": "done"}))
                sdk.wait(handle.task_id, timeout=SOON_S, poll_interval=0.05)
                return handle.wait().status, handle.result(timeout=SOON_S), handle.cancel()
        finally:
            asyncio.get_event_loop().close()  # which the client leaves open

    assert await asyncio.to_thread(work) == (TaskStatusEnum.COMPLETED, "done", False)


OUTSIDE: dict[str, Callable[[AsyncShannonClient], Awaitable[object]]] = {
    "list_session_files": lambda sdk: sdk.list_session_files("s1"),
    "download_session_file": lambda sdk: sdk.download_session_file("s1", "a.txt"),
    "list_memory_files": lambda sdk: sdk.list_memory_files(),
    "download_memory_file": lambda sdk: sdk.download_memory_file("a.txt"),
    "list_agents": lambda sdk: sdk.list_agents(),
    "get_agent": lambda sdk: sdk.get_agent("a"),
    "execute_agent": lambda sdk: sdk.execute_agent("a", {}),
    "list_openai_models": lambda sdk: sdk.list_openai_models(),
    "get_openai_model": lambda sdk: sdk.get_openai_model("m"),
    "create_chat_completion": lambda sdk: sdk.create_chat_completion([{"role": "user", "content": "x"}]),
    "stream_chat_completion": lambda sdk: all_of(sdk.stream_chat_completion([{"role": "user", "content": "x"}])),
    "create_completion": lambda sdk: sdk.create_completion({"prompt": "x"}),
    "stream_completion": lambda sdk: all_of(sdk.stream_completion({"prompt": "x"})),
    "list_tools": lambda sdk: sdk.list_tools(),
    "get_tool": lambda sdk: sdk.get_tool("t"),
    "execute_tool": lambda sdk: sdk.execute_tool("t", arguments={}),
    "list_skills": lambda sdk: sdk.list_skills(),
    "get_skill": lambda sdk: sdk.get_skill("s"),
    "get_skill_versions": lambda sdk: sdk.get_skill_versions("s"),
    "create_schedule": lambda sdk: sdk.create_schedule("n", "0 0 * * *", "q"),
    "get_schedule": lambda sdk: sdk.get_schedule("s"),
    "list_schedules": lambda sdk: sdk.list_schedules(),
    "update_schedule": lambda sdk: sdk.update_schedule("s", name="n"),
    "pause_schedule": lambda sdk: sdk.pause_schedule("s"),
    "resume_schedule": lambda sdk: sdk.resume_schedule("s"),
    "delete_schedule": lambda sdk: sdk.delete_schedule("s"),
    "get_schedule_runs": lambda sdk: sdk.get_schedule_runs("s"),
}


async def all_of(stream: AsyncIterator[object]) -> list[object]:
    return [one async for one in stream]


async def test_what_is_outside_the_task_api_is_not_found(sdk: AsyncShannonClient):
    for name, call in OUTSIDE.items():
        with pytest.raises(errors.ShannonError) as refused:
            await call(sdk)
        assert refused.value.code == "404", name


def test_every_method_of_the_sdk_is_told_with_its_outcome() -> None:
    methods = {
        name
        for kind in (AsyncShannonClient, ShannonClient)
        for name, _ in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }
    methods |= {
        f"TaskHandle.{name}" for name, _ in inspect.getmembers(TaskHandle, inspect.isfunction) if name[0] != "_"
    }
    rows = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]+) \|$", TABLE.read_text(), re.M)
    told = {name: outcome.strip() for name, outcome, _ in rows}
    assert len(rows) == len(told)
    assert told.keys() == methods
    assert {name for name, outcome in told.items() if outcome.startswith("404")} == OUTSIDE.keys()
