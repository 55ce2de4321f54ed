"""Shannon's API: wire structs, what they ask for (`to_command`), how a task reads (`render`), and its errors."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Literal, assert_never

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from app.dialects.shannon_events import approval_id
from app.dialects.shannon_unified import Unified, unified
from app.problems import NotFound, problem_of
from eventstore.events import Json, TaskId
from projections.task import Status, Task, metadata_of

RETRY_AFTER_S = 2
"""What the vendor's own examples wait between polls."""
ID = re.compile(r"[A-Za-z0-9:_\-.]{1,128}")
IN_A_HEADER = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")

Word = Literal["QUEUED", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"]
MODES = {"simple": "SIMPLE", "standard": "STANDARD", "complex": "COMPLEX"}


class Refusal(Exception):
    """What only Shannon refuses, or in other words than we: its status and its text."""

    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(text)
        self.status_code = status_code


class Refused(Struct, kw_only=True, omit_defaults=True):
    """Every error. `task_id` is the task of which it is not known whether it was begun."""

    error: str
    task_id: str | None = None


class Submitted(Struct, kw_only=True):
    """The task has begun. `status` is the call's, not the task's."""

    task_id: str
    status: Literal["STATUS_CODE_OK"] = "STATUS_CODE_OK"
    message: str
    created_at: datetime | None


class Streamable(Struct, kw_only=True):
    """The task has begun, and can be followed there."""

    workflow_id: str
    task_id: str
    stream_url: str


class TokenUsage(Struct, kw_only=True, omit_defaults=True):
    """What the task used so far; what is 0 is left out."""

    total_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    estimated_cost: float = 0.0


class TaskBody(Struct, kw_only=True):
    """A task as it is. Up to `mode` every field is always there."""

    task_id: str
    workflow_id: str
    status: str
    result: str
    response: Raw | None
    error: str
    created_at: datetime | None
    updated_at: datetime | None
    query: str
    session_id: str
    mode: str
    context: dict[str, Json] | UnsetType = UNSET
    model_used: str | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    usage: TokenUsage | UnsetType = UNSET
    metadata: dict[str, Json] | UnsetType = UNSET
    unified_response: Unified | UnsetType = UNSET


def refusal_of(error: Exception) -> tuple[int, Refused, dict[str, str]]:
    """Status, body and headers: ours in Shannon's words."""
    if isinstance(error, Refusal):
        return error.status_code, Refused(error=str(error)), {}
    problem, headers = problem_of(error)
    match problem.status:
        case 401:
            return 401, Refused(error="Unauthorized"), {"WWW-Authenticate": 'Bearer realm="Shannon API"'}
        case 404:
            return 404, Refused(error="Task not found" if isinstance(error, NotFound) else "404 page not found"), {}
        case 408:
            return 400, Refused(error=f"Invalid request body: {problem.detail}"), headers
        case 500:
            text = "Internal server error"
        case _:
            text = problem.detail or problem.title
    return problem.status, Refused(error=text, task_id=problem.task_id), headers


def word_of(task: Task) -> Word:
    """Shannon's word for the task's status; what it has none for is running, once the task has started."""
    status: Status = task.status
    match status:
        case "completed":
            return "COMPLETED"
        case "failed":
            return "FAILED"
        case "cancelled":
            return "CANCELLED"
        case "timed_out":
            return "TIMEOUT"
        case "paused":
            return "PAUSED"
        case "absent" | "pending" | "queued" | "running" | "waiting_for_input" | "awaiting_review":
            return "QUEUED" if task.started_at is None else "RUNNING"
        case _:
            assert_never(status)


def status_of(task: Task) -> str:
    """The word as most of Shannon's bodies have it."""
    return f"TASK_STATUS_{word_of(task)}"


def mode_of(task: Task) -> str:
    """How it was asked to work; `supervisor`, and what Shannon does not know, reads as standard."""
    return f"EXECUTION_MODE_{MODES.get(task.mode or '', 'STANDARD')}"


def short_mode_of(task: Task) -> str:
    """The same word as it was submitted; empty where none was, or another API began the task."""
    mode = task.mode or ""
    return mode if mode in MODES or mode == "supervisor" else ""


def query_of(task: Task, large: Mapping[str, object]) -> str:
    """What was asked. What another API was asked in JSON is that JSON; of a list's large one the title is left."""
    asked = large.get("input", task.input)
    if isinstance(asked, str):
        return asked
    return (task.title or "") if asked is None else msgspec.json.encode(asked).decode()


def context_of(task: Task, large: Mapping[str, object]) -> dict[str, Json]:
    """The context as it was submitted."""
    try:
        return msgspec.convert(metadata_of(task, large).get("context", {}), dict[str, Json])
    except msgspec.ValidationError:  # another API's own
        return {}


def error_of(task: Task) -> str:
    """Why it failed; empty where it did not."""
    if task.status not in ("failed", "timed_out") or task.error is None:
        return ""
    return task.error.message or task.error.code


def result_of(task: Task, large: Mapping[str, object]) -> str:
    """Empty where there is none."""
    result = large.get("result", task.result)
    return result if isinstance(result, str) else ""


def render(task: Task, large: Mapping[str, object]) -> bytes:
    """What a poll answers. Nothing here depends on the clock: one version has one body."""
    result, error, mode = result_of(task, large), error_of(task), mode_of(task)
    usage = task.usage
    return msgspec.json.encode(
        TaskBody(
            task_id=task.task_id,
            workflow_id=task.task_id,
            status=status_of(task),
            result=result,
            response=_response(result),
            error=error,
            created_at=task.created_at,
            updated_at=task.updated_at,
            query=query_of(task, large),
            session_id=task.session_id or "",
            mode=mode,
            context=context_of(task, large) or UNSET,
            model_used=(usage and usage.model) or UNSET,
            provider=(usage and usage.provider) or UNSET,
            usage=_usage(task) or UNSET,
            metadata=_waited_for(task) or UNSET,
            unified_response=unified(task, word=word_of(task), mode=mode, result=result, error=error),
        )
    )


def render_submitted(task: Task) -> bytes:
    """What a submission answers."""
    message = f"Task submitted successfully. Session: {task.session_id}"
    return msgspec.json.encode(Submitted(task_id=task.task_id, message=message, created_at=task.created_at))


def stream_url(task_id: TaskId) -> str:
    """Where the task is followed, as Shannon's clients join it to the address that they were given."""
    return f"/api/v1/stream/sse?workflow_id={task_id}"


def identified(task: Task) -> dict[str, str]:
    """The headers that name the task and, where a header can hold it, its session."""
    headers = {"X-Workflow-ID": str(task.task_id)}
    if task.session_id is not None and IN_A_HEADER.fullmatch(task.session_id):
        headers["X-Session-ID"] = task.session_id
    return headers


def _waited_for(task: Task) -> dict[str, Json]:
    """What somebody has to say before it goes on: Shannon has no status for that, and no list of approvals."""
    waited: dict[str, Json] = {}
    if task.question is not None:
        waited["pending_question"] = task.question
    if task.review is not None and task.asked_step is not None:
        waited["pending_approval"] = {"approval_id": approval_id(task.asked_step), "subject": task.review}
    return waited


def _usage(task: Task) -> TokenUsage | None:
    if task.usage is None:
        return None
    read, written = task.usage.input_tokens, task.usage.output_tokens
    cost = task.usage.cost
    if not (read or written or cost):
        return None
    return TokenUsage(total_tokens=read + written, input_tokens=read, output_tokens=written, estimated_cost=cost)


def _response(result: str) -> Raw | None:
    """The result where it is a JSON object, else an object that holds it: every client of the vendor's reads
    `response.result`."""
    if not result:
        return None
    try:
        parsed = isinstance(msgspec.json.decode(result), dict)
    except (msgspec.DecodeError, RecursionError):
        parsed = False
    # As it stands: numbers keep their digits, and what was nested as deeply as can be read is not written anew.
    return Raw(result.encode()) if parsed else Raw(msgspec.json.encode({"result": result}))
