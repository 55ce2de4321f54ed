"""Our own API: wire structs, what they ask for (`to_command`), how a task reads (`render`), and the routes."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.commands import CreateTask
from app.dialects.pace import poll_after_s
from eventstore.codec import MAX_DEPTH, nested_over
from eventstore.events import ApprovalMode, Json, PlannedStep, Problem, TaskId, Usage
from eventstore.log import AGENT, TASK_ID
from projections.task import Task, metadata_of

MAX_WAIT_S = 60.0
MAX_METADATA = 16 * 1024
PublicStatus = Literal[
    "pending",
    "queued",
    "running",
    "waiting_for_input",
    "awaiting_review",
    "paused",
    "completed",
    "failed",
    "cancelled",
    "timed_out",
]

AgentName = Annotated[str, Meta(pattern=f"^{AGENT.pattern}$", description="an agent of GET /agents")]
SessionId = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9:_.\-]{1,128}(?!\n)$",
        description="1 to 128 of the characters A-Z, a-z, 0-9, and : _ . -",
    ),
]


class NewTask(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is asked for. `timeout_s` is in seconds from now; `max_failures` bounds runs that break or are lost."""

    agent: AgentName | None = None
    input: Json = None
    title: Annotated[str, Meta(max_length=200)] | None = None
    session_id: SessionId | None = None
    metadata: dict[str, Json] = {}
    timeout_s: Annotated[float, Meta(ge=0.001, le=30 * 86_400)] | None = None
    max_failures: Annotated[int, Meta(ge=1, le=100)] = 5
    approval_mode: ApprovalMode = "auto"


class NewMessage(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the user says: the answer to the agent's question, or something for its inbox."""

    text: Annotated[str, Meta(min_length=1)]


class NewReview(Struct, kw_only=True, forbid_unknown_fields=True):
    """A person's decision on what awaits review."""

    approved: bool
    feedback: str | None = None


class Why(Struct, kw_only=True, forbid_unknown_fields=True):
    """Why, for the log."""

    reason: Annotated[str, Meta(max_length=1_000)] | None = None


class FileBody(Struct, kw_only=True):
    """A file that came with the task; its bytes are at `/tasks/{task_id}/blobs/{sha256}`. `size` is in bytes."""

    name: str
    size: int
    sha256: str
    media_type: str


class TaskBody(Struct, kw_only=True):
    """One task as it is. Nothing here depends on the clock: one version has one body. Times are RFC 3339.

    `poll_after_s` is how long a kind poller waits before it asks again; null once the task has ended.
    """

    task_id: str
    agent: str
    status: PublicStatus
    terminal: bool
    version: int
    sequence: int
    title: str | None
    input: Json
    session_id: str | None
    created_at: datetime | None
    started_at: datetime | None
    updated_at: datetime | None
    ended_at: datetime | None
    deadline: datetime | None
    run: int
    failures: int
    max_failures: int
    approval_mode: ApprovalMode
    tools_used: tuple[str, ...]
    partial_text: str
    result: str | None
    error: Problem | None
    question: str | None
    review: str | None
    plan: tuple[PlannedStep, ...]
    pause_requested: bool
    usage: Usage | None
    metadata: dict[str, Json]
    files: list[FileBody]
    poll_after_s: float | None


class TaskList(Struct, kw_only=True):
    """A page of the owner's tasks, newest first; `next_cursor` goes into the next question's `cursor`. `total` is there
    where it was asked for; where it is not `total_exact` there are at least so many."""

    data: list[TaskBody]
    has_more: bool
    next_cursor: str | None
    total: int | UnsetType = UNSET
    total_exact: bool | UnsetType = UNSET


class Event(Struct, kw_only=True):
    """A record of the log with its sequence and event id (the schema of a page's items; they are sent as stored)."""

    sequence: int
    id: str
    version: int
    at: datetime
    actor: str
    causation_id: str | None
    correlation_id: str | None
    previous: str
    record_id: str
    fact: dict[str, Json]
    traceparent: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    blob: dict[str, Json] | UnsetType = UNSET


class EventPage(Struct, kw_only=True):
    """A page of a task's history, oldest first; `next_after` goes into the next question's `after`."""

    data: list[Event]
    has_more: bool
    next_after: int


class AgentBody(Struct, kw_only=True):
    """An agent that can be asked for; `limit` of its tasks run at once."""

    name: str
    description: str
    limit: int


class AgentList(Struct, kw_only=True):
    """All agents."""

    data: list[AgentBody]


_encoder = msgspec.json.Encoder(order="deterministic")


def fingerprint(body: Struct) -> str:
    """SHA-256 of what was asked, the same for the same wish: to tell a repeat from another wish under the same key.

    Defaults are left out: a field that a later release adds must not turn a repeat into another wish.
    """
    return hashlib.sha256(_encoder.encode(body)).hexdigest()


def is_too_deep(body: NewTask) -> bool:
    """Whether what is asked for is nested over MAX_DEPTH."""
    return nested_over([body.input, *body.metadata.values()], MAX_DEPTH + 1)


def to_command(body: NewTask, *, default_agent: str) -> CreateTask:
    """The wish in the domain's words."""
    deadline = None if body.timeout_s is None else datetime.now(UTC) + timedelta(seconds=body.timeout_s)
    return CreateTask(
        agent=body.agent or default_agent,
        fingerprint=fingerprint(body),
        input=body.input,
        title=body.title,
        session_id=body.session_id,
        metadata=body.metadata,
        deadline=deadline,
        max_failures=body.max_failures,
        approval_mode=body.approval_mode,
    )


def render(task: Task, large: Mapping[str, object]) -> bytes:
    """The task's body; `large` are the fields of it that were too big for the log."""
    return msgspec.json.encode(_body(task, large))


def _body(task: Task, large: Mapping[str, object]) -> TaskBody:
    assert task.status != "absent", "who asks for a task's body has found it"
    result = large.get("result", task.result)
    return TaskBody(
        task_id=task.task_id,
        agent=task.agent,
        status=task.status,
        terminal=task.ended,
        version=task.version,
        sequence=task.sequence,
        title=task.title,
        input=large.get("input", task.input),
        session_id=task.session_id,
        created_at=task.created_at,
        started_at=task.started_at,
        updated_at=task.updated_at,
        ended_at=task.ended_at,
        deadline=task.deadline,
        run=task.run,
        failures=task.failures,
        max_failures=task.max_failures,
        approval_mode=task.approval_mode,
        tools_used=task.tools_used,
        partial_text=task.partial_text,
        result=result if isinstance(result, str) else None,
        error=task.error,
        question=task.question,
        review=task.review,
        plan=task.plan,
        pause_requested=task.pause_requested,
        usage=task.usage,
        metadata=metadata_of(task, large),
        files=[
            FileBody(name=file.name, size=file.bytes, sha256=file.sha256, media_type=file.media_type)
            for file in task.files
        ],
        # As of its last fact: what one version says must not depend on when it is asked for; Retry-After may.
        poll_after_s=poll_after_s(task, task.updated_at),
    )


def task_id_of(text: str) -> TaskId | None:
    """`task_<uuid>` or the bare UUID, in either case; None: no id of ours."""
    text = text.lower()
    task_id = text if text.startswith("task_") else f"task_{text}"
    return TaskId(task_id) if TASK_ID.fullmatch(task_id) else None
