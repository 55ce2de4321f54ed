"""The facts: everything that can happen to a task, as frozen tagged structs. Pure.

A fact's tag is its stored format and its public name everywhere (log, SSE `event:`, audit). Tags and field names are
never changed; new fields get defaults, so that every record ever written decodes.
"""

from datetime import datetime
from functools import cache
from typing import Annotated, Literal, NewType

from msgspec import Meta, Struct

TaskId = NewType("TaskId", str)
Owner = NewType("Owner", str)

Time = Annotated[datetime, Meta(tz=True)]
Json = Annotated[object, Meta(extra_json_schema={"description": "any JSON value"})]

ApprovalMode = Literal["auto", "dry_run", "confirm"]
StepKind = Literal["tool", "effect", "text", "ask", "review", "plan", "inbox", "clock", "random", "sleep", "usage"]
"""`tool` and `effect` act on the world; the rest only talk to the user or read what must be the same on a replay."""


class Fact(Struct, frozen=True, gc=False, kw_only=True, tag_field="type", omit_defaults=True):
    """What happened, past tense: never refused, never edited."""


class Problem(Struct, frozen=True, gc=False, kw_only=True):
    """Why a step, a run or a task failed: a code for programs, a message for people."""

    code: str
    message: str


class Usage(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """What a step cost. Tokens are counts; `cost` is in US dollars."""

    provider: str | None = None
    model: str | None = None
    input_tokens: Annotated[int, Meta(ge=0)] = 0
    output_tokens: Annotated[int, Meta(ge=0)] = 0
    cost: Annotated[float, Meta(ge=0)] = 0.0


class PlannedStep(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One step that an agent means to take: the tool, and why."""

    tool: str
    why: str = ""


class FileReference(Struct, frozen=True, gc=False, kw_only=True):
    """A file that came with the task; its bytes are the blob of this name."""

    name: str
    blob: str
    sha256: str
    bytes: int
    media_type: str = "application/octet-stream"


class TaskCreated(Fact, frozen=True, kw_only=True, tag="task.created"):
    """A client asked for work. `fingerprint` is the SHA-256 of what was asked, to tell a repeat from another wish.
    `earlier` are the ended tasks of its conversation that the agent is told of, oldest first."""

    agent: str
    fingerprint: str
    input: Json = None
    title: str | None = None
    session_id: str | None = None
    mode: str | None = None
    approval_mode: ApprovalMode = "auto"
    deadline: Time | None = None
    max_failures: int = 5
    dialect: str = "native"
    metadata: dict[str, Json] = {}
    files: tuple[FileReference, ...] = ()
    earlier: tuple[TaskId, ...] = ()
    runnable: bool = True


class TaskQueued(Fact, frozen=True, kw_only=True, tag="task.queued"):
    """The task waits for a slot: its agent is at its limit."""

    limit: int = 0


class TaskStarted(Fact, frozen=True, kw_only=True, tag="task.started"):
    """A worker took the task. `run` counts these from 1 and fences every worker before; `lost` says that the run
    before was given up for dead, which counts as a failure."""

    run: int
    worker: str
    lost: bool = False


class StepStarted(Fact, frozen=True, kw_only=True, tag="task.step_started"):
    """A step that acts on the world is about to act. `step` counts an agent's steps from 0; `input_sha256` is the
    digest of its canonical JSON, so that a replay can tell whether the agent still asks the same."""

    run: int
    step: int
    kind: StepKind
    name: str = ""
    input: Json = None
    input_sha256: str = ""


class StepFinished(Fact, frozen=True, kw_only=True, tag="task.step_finished"):
    """A step was answered, by `output` or `error`; `took` is wall-clock seconds. A recorded step never runs again."""

    run: int
    step: int
    kind: StepKind
    name: str = ""
    output: Json = None
    error: Problem | None = None
    took: float = 0.0
    input_sha256: str = ""
    message: str | None = None
    usage: Usage | None = None


class ToolUsed(Fact, frozen=True, kw_only=True, tag="task.tool_used"):
    """A tool answered: the `StepFinished` of a tool's step."""

    run: int
    step: int
    tool: str
    output: Json = None
    error: Problem | None = None
    took: float = 0.0
    input_sha256: str = ""
    message: str | None = None
    usage: Usage | None = None


class PartialProduced(Fact, frozen=True, kw_only=True, tag="task.partial"):
    """Text of a step, as it came; `offset` is where it stands in its step's text, in characters."""

    run: int
    step: int
    offset: int
    text: str


class PlanProposed(Fact, frozen=True, kw_only=True, tag="task.plan_proposed"):
    """The agent says what it means to do; with `needs_approval` it waits for a review first."""

    run: int
    step: int
    plan: tuple[PlannedStep, ...]
    needs_approval: bool = False
    input_sha256: str = ""


class InputRequested(Fact, frozen=True, kw_only=True, tag="task.input_requested"):
    """The agent asked the user, and no worker is held while it waits."""

    run: int
    step: int
    question: str
    input_sha256: str = ""


class InputReceived(Fact, frozen=True, kw_only=True, tag="task.input_received"):
    """The user said something: the answer to `step`, or, without one, a message for the agent's inbox."""

    text: str = ""
    step: int | None = None
    runnable: bool = False


class ReviewRequested(Fact, frozen=True, kw_only=True, tag="task.review_requested"):
    """The agent wants a person's approval before it goes on."""

    run: int
    step: int
    subject: str
    input_sha256: str = ""


class ReviewDecided(Fact, frozen=True, kw_only=True, tag="task.review_decided"):
    """A person approved, or did not, the review or plan of `step`."""

    step: int
    approved: bool
    feedback: str | None = None
    runnable: bool = False
    of_plan: bool = False


class PauseRequested(Fact, frozen=True, kw_only=True, tag="task.pause_requested"):
    """Someone wants the task paused; the step in hand ends first."""

    reason: str | None = None


class TaskPaused(Fact, frozen=True, kw_only=True, tag="task.paused"):
    """Nobody works on the task until it is resumed."""

    reason: str | None = None


class TaskResumed(Fact, frozen=True, kw_only=True, tag="task.resumed"):
    """The pause (or the wish for one) is over."""

    runnable: bool = False


class RunFailed(Fact, frozen=True, kw_only=True, tag="task.run_failed"):
    """A run broke, the task did not: it may run again at `retry_at`. Where it does not count, nothing broke: a worker
    that was told to stop gave the run back."""

    run: int
    error: Problem
    retry_at: Time | None = None
    runnable: bool = True
    counts: bool = True


class TaskCompleted(Fact, frozen=True, kw_only=True, tag="task.completed"):
    """The end: the work is done."""

    run: int
    result: str | None = None


class TaskFailed(Fact, frozen=True, kw_only=True, tag="task.failed"):
    """The end: the work can't be done."""

    code: str
    message: str = ""


class TaskCancelled(Fact, frozen=True, kw_only=True, tag="task.cancelled"):
    """The end: someone no longer wants it."""

    by: str
    reason: str | None = None
    was_paused: bool = False


class TaskTimedOut(Fact, frozen=True, kw_only=True, tag="task.timed_out"):
    """The end: the deadline passed."""

    deadline: Time


class SessionTitled(Fact, frozen=True, kw_only=True, tag="session.titled"):
    """A session got its title. `session_id` is what the tasks say, which its subject may only have a digest of."""

    title: str
    session_id: str = ""


class SessionDeleted(Fact, frozen=True, kw_only=True, tag="session.deleted"):
    """A session was taken out of its owner's lists, with all tasks before; they remain, each by itself. A task that
    names it later begins it anew."""

    session_id: str = ""


class Checkpoint(Fact, frozen=True, kw_only=True, tag="log.checkpoint"):
    """What the log held, signed: all records after `after`, up to `sequence`.

    `digest` is the SHA-256 (hex) of their leaves, one after the other; `leaves` are those (base64), 16 bytes for each
    sequence: the first of SHA-256(subject, line feed, SHA-256(stored bytes)), or zeros where the log held none.
    `key` (an Ed25519 public key) and `signature` are base64; what is signed is said in docs/reference/audit.md.
    """

    after: int
    sequence: int
    digest: str
    key: str
    signature: str
    leaves: str = ""


class UnknownFact(Struct, frozen=True, gc=False, kw_only=True, tag_field="type", tag="unknown"):
    """A fact whose tag a newer release wrote. Streamed as it is; commands on its task are refused until the upgrade."""

    tag: str
    fields: dict[str, Json]


TaskFact = (
    TaskCreated
    | TaskQueued
    | TaskStarted
    | StepStarted
    | StepFinished
    | ToolUsed
    | PartialProduced
    | PlanProposed
    | InputRequested
    | InputReceived
    | ReviewRequested
    | ReviewDecided
    | PauseRequested
    | TaskPaused
    | TaskResumed
    | RunFailed
    | TaskCompleted
    | TaskFailed
    | TaskCancelled
    | TaskTimedOut
)
SessionFact = SessionTitled | SessionDeleted
LogFact = Checkpoint
Ending = TaskCompleted | TaskFailed | TaskCancelled | TaskTimedOut

MAX_FACTS = 20_000
"""At most so many facts a task; the last one allowed is an end."""


class BlobReference(Struct, frozen=True, gc=False, kw_only=True):
    """Where the large fields of a fact are: a JSON object `{field: value}` in the object store.

    `name` is the record's id; `sha256` and `bytes` are those of the stored JSON.
    """

    name: str
    sha256: str
    bytes: int
    fields: tuple[str, ...]


class Stamp(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Who, when and why: what every line of the log says beside its fact.

    `version` counts the records of one subject from 1, without holes. `previous` is the SHA-256 (hex) of the stored
    bytes of the subject's record before, empty for the first: a chain. `key` is the hash of an idempotency key.
    """

    version: int
    at: Time
    actor: str
    causation_id: str | None
    correlation_id: str | None
    previous: str
    record_id: str
    traceparent: str | None = None
    key: str | None = None
    blob: BlobReference | None = None


class Record(Stamp, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a task's history, as stored."""

    fact: TaskFact | UnknownFact


class SessionRecord(Stamp, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a session's history, as stored (subject `sessions.<owner>.<session_id>`)."""

    fact: SessionFact | UnknownFact


class LogRecord(Stamp, frozen=True, kw_only=True, omit_defaults=True):
    """What is said of the log itself, as stored (subject `checkpoints`)."""

    fact: LogFact | UnknownFact


def tag_of(fact: TaskFact | SessionFact | LogFact | UnknownFact) -> str:
    """The fact's public name, `task.created` say."""
    if isinstance(fact, UnknownFact):
        return fact.tag
    return _tag_of_kind(type(fact))


@cache
def _tag_of_kind(kind: type[TaskFact | SessionFact | LogFact]) -> str:
    tag = kind.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
