"""Niyra's API: wire structs, what they ask for (`to_command`), how a task reads (`render_...`), and its errors."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal, assert_never
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.auth import NotAllowed
from app.commands import CreateTask
from app.dialects.native import fingerprint, task_id_of
from app.dialects.niyra_waiting import WaitingFor, waiting_for
from app.problems import BadRequest, problem_of
from eventstore.events import ApprovalMode, Problem, TaskId
from projections.task import Status, Task

MAX_INSTRUCTION = 8_000
MAX_QUESTION = 4_000
MAX_CHANNEL_CONTEXT = 8_000
RETRY_AFTER_S = 3
"""What the vendor's own example waits between polls."""

PENDING = r"^(task_)?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"

ChannelContext = Annotated[str, Meta(max_length=MAX_CHANNEL_CONTEXT)]
PendingTaskId = Annotated[str, Meta(pattern=PENDING, description="a pending_task_id: task_ and a UUID")]
Question = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_QUESTION,
        pattern=r"\S",
        description=f"a question of 1 to {MAX_QUESTION} characters, not all of them blank",
    ),
]
NiyraStatus = Literal["pending", "running", "complete", "failed", "cancelled"]
Mode = Literal["execute", "ask"]


class NewExecution(Struct, kw_only=True, omit_defaults=True):
    """What is to be done: an `instruction`, or, by `confirmed_task_id`, what a plan said; then only that is read."""

    instruction: str | None = None
    conversation_id: UUID | None = None
    approval_mode: ApprovalMode | None = None
    channel_context: ChannelContext | None = None
    confirmed_task_id: PendingTaskId | None = None


class NewQuestion(Struct, kw_only=True, omit_defaults=True):
    """What is asked; the tools that answer it change nothing."""

    question: Question
    conversation_id: UUID | None = None
    channel_context: ChannelContext | None = None


class Planned(Struct, kw_only=True):
    """One step of a plan."""

    tool: str
    why: str


class Executed(Struct, kw_only=True):
    """What came of it in the window. `status` is there where it did not end well, or not yet; `plan` where one was
    asked for; `pending_task_id` where the plan waits to be confirmed; `waiting_for` where somebody has to act."""

    result: str | None
    conversation_id: str | None
    task_id: str
    elapsed_ms: int
    terminal: bool
    tools_used: tuple[str, ...] | UnsetType = UNSET
    status: NiyraStatus | UnsetType = UNSET
    error: Problem | UnsetType | None = UNSET
    plan: list[Planned] | UnsetType = UNSET
    pending_task_id: str | UnsetType = UNSET
    waiting_for: WaitingFor | UnsetType = UNSET


class Answered(Struct, kw_only=True):
    """The answer, or the task that still looks for it (or, by its `status` and `error`, found none)."""

    answer: str | None
    conversation_id: str | None
    task_id: str | None
    elapsed_ms: int
    status: NiyraStatus | UnsetType = UNSET
    error: Problem | UnsetType | None = UNSET
    waiting_for: WaitingFor | UnsetType = UNSET


class Polled(Struct, kw_only=True):
    """A task as it is. `plan`, `pending_task_id` and `waiting_for` are there as in Executed."""

    task_id: str
    status: NiyraStatus
    terminal: bool
    started_at: datetime | None
    completed_at: datetime | None
    tools_used: tuple[str, ...]
    result: str | None
    partial_text: str | None
    error: Problem | None
    plan: list[Planned] | UnsetType = UNSET
    pending_task_id: str | UnsetType = UNSET
    waiting_for: WaitingFor | UnsetType = UNSET


class Refusal(Struct, kw_only=True, omit_defaults=True):
    """Every error. `scope` is the least that is needed; `task_id` the task that it is about."""

    error: str
    error_description: str
    scope: str | None = None
    task_id: str | None = None


class ToolDisabled(Exception):
    """The task failed because it came to a tool that its owner has switched off."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.error.message if task.error else "")
        self.task_id = task.task_id


class OriginNotAllowed(Exception):
    """A browser's page of another site asks: no scope would help it."""


CODES: dict[int, str] = {
    400: "invalid_request",
    401: "invalid_token",
    403: "insufficient_scope",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "rate_limit_exceeded",
    503: "temporarily_unavailable",
}


def refusal_of(error: Exception) -> tuple[int, Refusal, dict[str, str]]:
    """Status, body and headers: ours in Niyra's words."""
    if isinstance(error, ToolDisabled):
        return 403, Refusal(error="tool_disabled", error_description=str(error), task_id=error.task_id), {}
    if isinstance(error, OriginNotAllowed):
        return 403, Refusal(error="origin_not_allowed", error_description=str(error)), {}
    problem, headers = problem_of(error)
    code = CODES.get(problem.status, "invalid_request" if problem.status < 500 else "server_error")
    refusal = Refusal(
        error=code,
        error_description=problem.detail or problem.title,
        scope=error.scope if isinstance(error, NotAllowed) else None,
        task_id=problem.task_id,
    )
    return problem.status, refusal, headers


def instruction_of(body: NewExecution) -> str:
    """What is to be done. Raises BadRequest."""
    text = body.instruction or ""
    if not text.strip():
        raise BadRequest("instruction: say what is to be done")
    if len(text) > MAX_INSTRUCTION:
        raise BadRequest(f"instruction: {MAX_INSTRUCTION} characters at most")
    return text


def confirmed_id(text: str) -> TaskId:
    """The task whose plan is confirmed. Raises BadRequest."""
    task_id = task_id_of(text)
    if task_id is None:
        raise BadRequest("confirmed_task_id: this is no pending_task_id")
    return task_id


def to_command(body: NewExecution | NewQuestion, *, agent: str, conversation_id: str) -> CreateTask:
    """The wish in the domain's words. Raises BadRequest."""
    approval_mode: ApprovalMode = "auto"
    match body:
        case NewExecution():
            text, mode = instruction_of(body), "execute"
            approval_mode = body.approval_mode or "auto"
        case NewQuestion():
            text, mode = body.question, "ask"
        case _:
            assert_never(body)
    return CreateTask(
        agent=agent,
        # What we make up ourselves is not in it: a repeat under the same key is the same wish.
        fingerprint=fingerprint(body),
        input=text,
        session_id=conversation_id,
        mode=mode,
        approval_mode=approval_mode,
        dialect="niyra",
        metadata={} if body.channel_context is None else {"channel_context": body.channel_context},
    )


def status_of(task: Task) -> NiyraStatus:
    """Niyra's word for the task's status; what it has none for is running, once the task has started."""
    status: Status = task.status
    match status:
        case "completed":
            return "complete"
        case "failed" | "timed_out":
            return "failed"
        case "cancelled":
            return "cancelled"
        case "absent" | "pending" | "queued" | "running" | "waiting_for_input" | "awaiting_review" | "paused":
            return "pending" if task.started_at is None else "running"
        case _:
            assert_never(status)


def render_executed(task: Task, large: Mapping[str, object], elapsed_ms: int) -> bytes:
    """What `execute` answers."""
    body = Executed(
        result=_result(task, large),
        conversation_id=task.session_id,
        task_id=task.task_id,
        elapsed_ms=elapsed_ms,
        terminal=task.ended,
        plan=_plan(task),
        pending_task_id=task.task_id if task.plan_awaits_review else UNSET,
        waiting_for=waiting_for(task),
    )
    if task.ended:
        body.tools_used = task.tools_used
        if task.status != "completed":
            body.status, body.error = status_of(task), task.error
    else:
        # The vendor's word for whatever goes on behind the window; a poll says whether it has begun.
        body.status = "running"
    return msgspec.json.encode(body)


def render_answered(task: Task, large: Mapping[str, object], elapsed_ms: int) -> bytes:
    """What `ask` answers."""
    body = Answered(
        answer=_result(task, large),
        conversation_id=task.session_id,
        task_id=None if task.status == "completed" else task.task_id,
        elapsed_ms=elapsed_ms,
        waiting_for=waiting_for(task),
    )
    if task.ended and task.status != "completed":
        body.status, body.error = status_of(task), task.error
    return msgspec.json.encode(body)


def render_polled(task: Task, large: Mapping[str, object]) -> bytes:
    """What a poll answers. Nothing here depends on the clock: one version has one body."""
    status = status_of(task)
    body = Polled(
        task_id=task.task_id,
        status=status,
        terminal=task.ended,
        started_at=task.started_at,
        completed_at=task.ended_at,
        tools_used=task.tools_used,
        result=_result(task, large),
        partial_text=None if status in ("failed", "cancelled") else task.partial_text,
        error=task.error if status == "failed" else None,
        plan=_plan(task),
        pending_task_id=task.task_id if task.plan_awaits_review else UNSET,
        waiting_for=waiting_for(task),
    )
    return msgspec.json.encode(body)


def _plan(task: Task) -> list[Planned] | UnsetType:
    planned = task.approval_mode == "dry_run" and (task.ended or task.plan_step is not None)
    if not planned and not task.plan_awaits_review:
        return UNSET
    return [Planned(tool=step.tool, why=step.why) for step in task.plan]


def _result(task: Task, large: Mapping[str, object]) -> str | None:
    result = large.get("result", task.result)
    return result if isinstance(result, str) else None
