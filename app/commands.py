"""Commands: what somebody wants of a task. Imperative; `decide` may refuse them. Pure."""

from datetime import datetime

from msgspec import Struct

from eventstore.events import ApprovalMode, FileReference, Json, PlannedStep, Problem, StepKind, TaskId, Usage


class Wish(Struct, frozen=True, kw_only=True):
    """What every command carries: the hash of its idempotency key, if it has one; and the task's version, if it is
    meant for that one only."""

    key: str | None = None
    at_version: int | None = None


class CreateTask(Wish, frozen=True, kw_only=True):
    """Begin a task."""

    agent: str
    fingerprint: str
    input: Json = None
    title: str | None = None
    session_id: str | None = None
    mode: str | None = None
    approval_mode: ApprovalMode = "auto"
    deadline: datetime | None = None
    max_failures: int = 5
    dialect: str = "native"
    metadata: dict[str, Json] = {}
    files: tuple[FileReference, ...] = ()
    earlier: tuple[TaskId, ...] = ()


class QueueTask(Wish, frozen=True, kw_only=True):
    """The dispatcher: hold the task, its agent is at its limit."""

    limit: int


class StartRun(Wish, frozen=True, kw_only=True):
    """A worker: run the task, as run number `run` (the last one plus one)."""

    run: int
    worker: str


class StartStep(Wish, frozen=True, kw_only=True):
    """A worker: this step acts now."""

    run: int
    step: int
    kind: StepKind
    name: str = ""
    input: Json = None
    input_sha256: str = ""


class FinishStep(Wish, frozen=True, kw_only=True):
    """A worker: this step was answered."""

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


class ProducePartial(Wish, frozen=True, kw_only=True):
    """A worker: more text of this step."""

    run: int
    step: int
    offset: int
    text: str


class ProposePlan(Wish, frozen=True, kw_only=True):
    """A worker: this is what the agent means to do."""

    run: int
    step: int
    plan: tuple[PlannedStep, ...]
    input_sha256: str = ""


class RequestInput(Wish, frozen=True, kw_only=True):
    """A worker: the agent asks the user."""

    run: int
    step: int
    question: str
    input_sha256: str = ""


class RequestReview(Wish, frozen=True, kw_only=True):
    """A worker: the agent wants approval."""

    run: int
    step: int
    subject: str
    input_sha256: str = ""


class PauseTask(Wish, frozen=True, kw_only=True):
    """A worker: the step in hand has ended, and a pause is wished for."""

    run: int


class FailRun(Wish, frozen=True, kw_only=True):
    """A worker: the run broke; try again at `retry_at`. Where it does not count: the run is given back."""

    run: int
    error: Problem
    retry_at: datetime | None = None
    counts: bool = True


class CompleteTask(Wish, frozen=True, kw_only=True):
    """A worker: done."""

    run: int
    result: str | None = None


class FailTask(Wish, frozen=True, kw_only=True):
    """A worker: can't be done."""

    run: int
    code: str
    message: str = ""


class ReceiveInput(Wish, frozen=True, kw_only=True):
    """The user says something: the answer to a question, or a message for the inbox."""

    text: str


class DecideReview(Wish, frozen=True, kw_only=True):
    """A person approves, or does not. With `step`, only what that step asked: not what may be asked after it."""

    approved: bool
    feedback: str | None = None
    step: int | None = None


class RequestPause(Wish, frozen=True, kw_only=True):
    """Pause, after the step in hand."""

    reason: str | None = None


class ResumeTask(Wish, frozen=True, kw_only=True):
    """Go on."""


class CancelTask(Wish, frozen=True, kw_only=True):
    """No longer wanted."""

    by: str
    reason: str | None = None


class TimeOutTask(Wish, frozen=True, kw_only=True):
    """A timer: the deadline that it was set for has passed."""

    deadline: datetime


WorkerCommand = (
    StartStep
    | FinishStep
    | ProducePartial
    | ProposePlan
    | RequestInput
    | RequestReview
    | PauseTask
    | FailRun
    | CompleteTask
    | FailTask
)
ClientCommand = ReceiveInput | DecideReview | RequestPause | ResumeTask | CancelTask
Command = CreateTask | QueueTask | StartRun | TimeOutTask | WorkerCommand | ClientCommand
