"""Nanonets' API: wire structs, what they ask for (`to_command`), how a task reads (`render...`), and its errors."""

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.agents.catalogue import Catalogue
from app.commands import CreateTask
from app.dialects.native import fingerprint, task_id_of
from app.mistakes import decoded
from app.problems import BadRequest, NotFound, Refused, problem_of
from eventstore.codec import MAX_DEPTH, nested_over
from eventstore.events import Json, TaskId
from eventstore.log import AGENT
from projections.task import Status, Task, metadata_of

AGENT_IDS = uuid.UUID("3d4c1c1e-6a9f-5d0b-8f5e-2b7d0b1f9a64")
"""The namespace of the agents' UUIDs (version 5, of their names)."""
MAX_TITLE = 100
MAX_OUTPUT_CONFIG = 64 * 1024
RETRY_AFTER_S = 2
"""The vendor's own pages: begin with a second or two."""

NanonetsStatus = Literal[
    "pending", "queued", "running", "waiting_for_input", "awaiting_review", "completed", "failed", "stopped"
]
WORDS: dict[Status, NanonetsStatus] = {
    "absent": "pending",
    "pending": "pending",
    "queued": "queued",
    "running": "running",
    "waiting_for_input": "waiting_for_input",
    "awaiting_review": "awaiting_review",
    "paused": "running",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "stopped",
    "timed_out": "stopped",
}
BEGUN: dict[NanonetsStatus, str] = {
    "pending": "The task waits for a worker.",
    "queued": "The task waits: its agent is at its limit of concurrent tasks.",
}


class OutputConfig(Struct, kw_only=True, omit_defaults=True):
    """What the result is to look like: a JSON Schema, and words about it."""

    output_schema: dict[str, Json] | None = None
    instructions: str | None = None


class NewRun(Struct, kw_only=True, omit_defaults=True):
    """What is to be done. Without a query, by what the files say."""

    query: str | None = None
    output_config: OutputConfig | None = None


class NewAnswer(Struct, kw_only=True):
    """What the user says."""

    message: Annotated[str, Meta(min_length=1, pattern=r"\S", description="a string, not all of it blank")]


class Begun(Struct, kw_only=True):
    """A task that was just asked for."""

    task_id: str
    agent_id: str
    status: NanonetsStatus
    message: str
    created_at: datetime | None


class Polled(Struct, kw_only=True):
    """A task as it is. Nothing here depends on the clock: one version has one body."""

    task_id: str
    agent_id: str
    status: NanonetsStatus
    title: str | UnsetType
    created_at: datetime | None
    updated_at: datetime | None


class Summary(Struct, kw_only=True):
    """The final answer; `extracted_data` where a schema was given and the answer is a JSON object."""

    task_id: str
    agent_id: str
    status: NanonetsStatus
    summary: str | None
    completed_at: datetime | None
    extracted_data: dict[str, Json] | UnsetType = UNSET


class AgentBody(Struct, kw_only=True):
    """An agent that can be run, by `id` or by `name`."""

    id: str
    name: str
    description: str
    is_active: bool
    max_concurrent_tasks: int
    created_at: datetime
    updated_at: datetime


class Refusal(Struct, kw_only=True, omit_defaults=True):
    """Every error; `status` is the task's where it is about that."""

    error: str
    status: NanonetsStatus | None = None


class NotNow(Exception):
    """The task's status does not allow it."""

    def __init__(self, task: Task, why: str) -> None:
        self.status: NanonetsStatus = status_of(task)
        super().__init__(f"the task is {self.status}: {why}")


STATUS_CODES = {408: 400, 413: 400, 422: 409, 502: 500}
"""Where the vendor has another for it, or none."""


def refusal_of(error: Exception) -> tuple[int, Refusal, dict[str, str]]:
    """Status, body and headers: ours in Nanonets' words."""
    if isinstance(error, NotNow):
        return 409, Refusal(error=str(error), status=error.status), {}
    problem, headers = problem_of(error)
    text = problem.detail or problem.title
    # Who was sent away by `decide` is told no more than why.
    if isinstance(error, Refused) and problem.status == 404:
        text = "no such task"
    return STATUS_CODES.get(problem.status, problem.status), Refusal(error=text), headers


def task_id_said(text: str) -> TaskId:
    """A task's id, with or without our `task_`. Raises BadRequest: it is none."""
    task_id = task_id_of(text)
    if task_id is None:
        raise BadRequest("task_id: this is no UUID")
    return task_id


def agent_id(name: str) -> str:
    """The agent's UUID."""
    return str(uuid.uuid5(AGENT_IDS, name))


def agent_named(text: str, catalogue: Catalogue) -> str:
    """The agent's name, by its name or its UUID. Raises BadRequest, NotFound."""
    if not AGENT.fullmatch(text.lower()):
        raise BadRequest("agent_id: this is neither a UUID nor a name")
    if text in catalogue:
        return text
    named = {agent_id(name): name for name in catalogue.names}
    if text.lower() not in named:
        raise NotFound("no such agent")
    return named[text.lower()]


def read_run(content: bytes) -> NewRun:
    """Raises BadRequest."""
    return decoded(content, NewRun)


def read_output_config(text: str) -> OutputConfig:
    """Of a form, where it is JSON in a field. Raises BadRequest."""
    return decoded(text.encode(), OutputConfig, at="output_config")


def read_answer(content: bytes) -> NewAnswer:
    """Raises BadRequest."""
    return decoded(content, NewAnswer)


def to_command(body: NewRun, *, agent: str, digests: Iterable[tuple[str, str]] = ()) -> CreateTask:
    """The wish in the domain's words; `digests` are the names and SHA-256s of its files. Raises BadRequest."""
    query = body.query or ""
    files = tuple(digests)
    if not query.strip() and not files:
        raise BadRequest("query: say what is to be done, or send a file")
    config = body.output_config or OutputConfig()
    asked: dict[str, Json] = {"output_schema": config.output_schema, "instructions": config.instructions}
    metadata = {name: value for name, value in asked.items() if value is not None}
    if nested_over([metadata], MAX_DEPTH + 1):
        raise BadRequest(f"output_config: nested {MAX_DEPTH} levels at most")
    if len(msgspec.json.encode(metadata)) > MAX_OUTPUT_CONFIG:
        raise BadRequest(f"output_config: {MAX_OUTPUT_CONFIG} bytes at most")
    return CreateTask(
        agent=agent,
        fingerprint=fingerprint(_Wish(agent=agent, query=query, metadata=metadata, files=files)),
        input=query,
        title=_title(query) or (files[0][0] if files else None),
        dialect="nanonets",
        metadata=metadata,
    )


class _Wish(Struct):
    """What makes a repeat a repeat."""

    agent: str
    query: str
    metadata: dict[str, Json]
    files: tuple[tuple[str, str], ...]


def status_of(task: Task) -> NanonetsStatus:
    """Nanonets' word for the task's status. What waits to be run again has begun, and so is running."""
    if task.status == "pending" and task.started_at is not None:
        return "running"
    return WORDS[task.status]


def ours(wanted: frozenset[NanonetsStatus]) -> frozenset[Status]:
    """Our statuses under which tasks of theirs can be found."""
    found: set[Status] = {status for status, word in WORDS.items() if word in wanted}
    if "running" in wanted:
        found.add("pending")
    return frozenset(found)


def bare(task: Task) -> str:
    """The task's id as Nanonets writes it."""
    return task.task_id.removeprefix("task_")


def render_begun(task: Task) -> bytes:
    """What `run` answers."""
    status = status_of(task)
    body = Begun(
        task_id=bare(task),
        agent_id=agent_id(task.agent),
        status=status,
        message=BEGUN.get(status, f"The task is {status}."),
        created_at=task.created_at,
    )
    return msgspec.json.encode(body)


def render(task: Task, large: Mapping[str, object]) -> bytes:
    """What a poll answers."""
    del large  # nothing of it is here
    body = Polled(
        task_id=bare(task),
        agent_id=agent_id(task.agent),
        status=status_of(task),
        title=UNSET if task.title is None else task.title,
        created_at=task.created_at,
        updated_at=task.updated_at,
    )
    return msgspec.json.encode(body)


def render_summary(task: Task, large: Mapping[str, object]) -> bytes:
    """The final answer. Raises NotNow."""
    if task.status != "completed":
        raise NotNow(task, "there is a summary once it is completed")
    result = large.get("result", task.result)
    summary = result if isinstance(result, str) else None
    body = Summary(
        task_id=bare(task),
        agent_id=agent_id(task.agent),
        status="completed",
        summary=summary,
        completed_at=task.ended_at,
        extracted_data=_extracted(summary) if "output_schema" in metadata_of(task, large) else UNSET,
    )
    return msgspec.json.encode(body)


def _extracted(summary: str | None) -> dict[str, Json] | UnsetType:
    try:
        return msgspec.json.decode(summary or "", type=dict[str, Json])
    except (ValueError, RecursionError):
        return UNSET


def _title(query: str) -> str | None:
    words = " ".join(query[: 4 * MAX_TITLE].split())
    return None if not words else words if len(words) <= MAX_TITLE else f"{words[: MAX_TITLE - 1]}…"
