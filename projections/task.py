"""`Task`, `INITIAL`, `evolve`: one task, folded from its facts. Pure; the only place that knows what a status is."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, assert_never

from msgspec import Struct, convert
from msgspec.structs import replace

from eventstore.events import (
    ApprovalMode,
    BlobReference,
    FileReference,
    InputReceived,
    InputRequested,
    Json,
    Owner,
    PartialProduced,
    PauseRequested,
    PlannedStep,
    PlanProposed,
    Problem,
    Record,
    ReviewDecided,
    ReviewRequested,
    RunFailed,
    StepFinished,
    StepKind,
    StepStarted,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskId,
    TaskPaused,
    TaskQueued,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    ToolUsed,
    UnknownFact,
    Usage,
)
from eventstore.log import Recorded

Status = Literal[
    "absent",
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
ENDED: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "timed_out"})

MAX_KEYS = 64
MAX_PARTIAL_TEXT = 32_768
"""Characters of `partial_text` that a view keeps: the tail."""


class StepInHand(Struct, frozen=True, gc=False, kw_only=True):
    """A step that was started and not yet answered."""

    step: int
    kind: StepKind
    name: str
    run: int


class Halt(Struct, frozen=True, gc=False, kw_only=True):
    """Who paused or cancelled it, when, and why. `at` is None while the step in hand has not ended."""

    by: str
    reason: str | None
    at: datetime | None


class Task(Struct, frozen=True, gc=False, kw_only=True):
    """One task as its facts tell it. `sequence`, `version` and `sha256` are those of its last record.

    `steps` is the number of finished steps, dense from 0; `text` the text of finished steps, `step_text` that of the
    step in hand. Times are the records' own. A field in `blobs` is too big to be here and is read from the store.
    `imported`: its last record came from another log, so nobody here works on it until somebody acts on it.
    """

    task_id: TaskId = TaskId("")
    owner: Owner = Owner("")
    status: Status = "absent"
    sequence: int = 0
    version: int = 0
    sha256: str = ""
    agent: str = ""
    input: Json = None
    title: str | None = None
    session_id: str | None = None
    mode: str | None = None
    approval_mode: ApprovalMode = "auto"
    dialect: str = "native"
    fingerprint: str = ""
    metadata: dict[str, Json] = {}
    files: tuple[FileReference, ...] = ()
    earlier: tuple[TaskId, ...] = ()
    max_failures: int = 5
    deadline: datetime | None = None
    correlation_id: str | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None
    run: int = 0
    worker: str | None = None
    runnable: bool = False
    failures: int = 0
    retry_at: datetime | None = None
    last_error: Problem | None = None
    steps: int = 0
    in_hand: StepInHand | None = None
    tools_used: tuple[str, ...] = ()
    text: str = ""
    step_text: str = ""
    text_step: int = -1
    text_length: int = 0
    plan: tuple[PlannedStep, ...] = ()
    plan_step: int | None = None
    plan_approved: bool = False
    question: str | None = None
    review: str | None = None
    asked_step: int | None = None
    inbox: int = 0
    pause_requested: bool = False
    halt: Halt | None = None
    result: str | None = None
    error: Problem | None = None
    usage: Usage | None = None
    keys: tuple[str, ...] = ()
    blobs: dict[str, BlobReference] = {}
    unknown: str | None = None
    imported: bool = False

    @property
    def ended(self) -> bool:
        """Completed, failed, cancelled or timed out: no further facts."""
        return self.status in ENDED

    @property
    def blob_bytes(self) -> int:
        """How large its blobs are together: several of its fields may be in one."""
        return sum(reference.bytes for reference in set(self.blobs.values()))

    @property
    def partial_text(self) -> str:
        """The text so far, its tail where it is long."""
        return (self.text + self.step_text)[-MAX_PARTIAL_TEXT:]

    @property
    def plan_awaits_review(self) -> bool:
        """Whether its plan is what waits for a review."""
        return self.review is not None and self.asked_step == self.plan_step

    @property
    def reads_only(self) -> bool:
        """Whether its tools may look at the world and change nothing: a question was asked, nothing ordered."""
        return self.dialect == "niyra" and self.mode == "ask"

    @property
    def answered(self) -> Status:
        """Where the task goes once nobody needs to be asked: paused if it is paused, else ready to run."""
        return "paused" if self.status == "paused" else "pending"


INITIAL = Task()


def metadata_of(task: Task, large: Mapping[str, object]) -> dict[str, Json]:
    """Its metadata, also where they are among the fields that are too big for it."""
    return convert(large.get("metadata", task.metadata), dict[str, Json])


def follows(recorded: Recorded, task: Task) -> bool:
    """Whether this is the task's next record, by its version and by the hash of the one before."""
    return recorded.record.version == task.version + 1 and recorded.record.previous == task.sha256


def evolve(task: Task, recorded: Recorded) -> Task:
    """The task after one more record. Never raises: history is not up for debate."""
    record = recorded.record
    folded = replace(
        _fold(task, record),
        task_id=recorded.task_id,
        owner=recorded.owner,
        sequence=recorded.sequence,
        version=record.version,
        sha256=recorded.sha256,
        updated_at=record.at,
        imported=recorded.imported,
    )
    if record.key is not None:
        folded = replace(folded, keys=(*folded.keys, record.key)[-MAX_KEYS:])
    return folded


def _fold(task: Task, record: Record) -> Task:
    match record.fact:
        case TaskCreated() as fact:
            return _created(task, record, fact)
        case TaskQueued():
            return replace(task, status="queued")
        case TaskStarted() as fact:
            return _started(task, record, fact)
        case StepStarted(step=step, kind=kind, name=name, run=run):
            return replace(task, in_hand=StepInHand(step=step, kind=kind, name=name, run=run))
        case StepFinished() as fact:
            return _step_finished(task, fact)
        case ToolUsed(tool=tool) as fact:
            tools = task.tools_used if tool in task.tools_used else (*task.tools_used, tool)
            return replace(_step_finished(task, fact), tools_used=tools)
        case PartialProduced(step=step, text=text, offset=offset):
            before = task.step_text if step == task.text_step else ""
            return replace(
                task,
                step_text=(before + text)[-MAX_PARTIAL_TEXT:],
                text_step=step,
                text_length=offset + len(text),
            )
        case PlanProposed(plan=plan, needs_approval=needs_approval, step=step):
            planned = replace(_void(task), plan=plan, plan_step=step, plan_approved=False)
            if needs_approval:
                return _set_down(replace(planned, asked_step=step, review="plan"), "awaiting_review")
            return replace(planned, steps=step + 1)
        case InputRequested(question=question, step=step):
            return _set_down(replace(task, question=question, asked_step=step), "waiting_for_input")
        case InputReceived(step=step, runnable=runnable):
            if step is None:
                return replace(task, inbox=task.inbox + 1)
            answered = replace(task, question=None, asked_step=None, steps=step + 1, runnable=runnable)
            return replace(answered, status=task.answered)
        case ReviewRequested(subject=subject, step=step):
            return _set_down(replace(task, review=subject, asked_step=step), "awaiting_review")
        case ReviewDecided(step=step, approved=approved, runnable=runnable):
            decided = replace(task, review=None, asked_step=None, steps=step + 1, runnable=runnable)
            plan_approved = approved if step == task.plan_step else task.plan_approved
            return replace(decided, status=task.answered, plan_approved=plan_approved)
        case PauseRequested(reason=reason):
            return replace(task, pause_requested=True, halt=Halt(by=record.actor, reason=reason, at=None))
        case TaskPaused(reason=reason):
            # Where a worker says so, it was somebody else's wish.
            wished = task.halt if task.pause_requested and task.halt is not None else None
            halt = wished or Halt(by=record.actor, reason=reason, at=None)
            return replace(_set_down(task, "paused"), pause_requested=False, halt=replace(halt, at=record.at))
        case TaskResumed(runnable=runnable):
            if task.status != "paused":
                return replace(task, pause_requested=False, halt=None)
            return replace(task, runnable=runnable, status=_unpaused(task), halt=None)
        case RunFailed(error=error, retry_at=retry_at, runnable=runnable, counts=counts):
            down = replace(_set_down(task, "pending"), retry_at=retry_at, runnable=runnable)
            return replace(down, failures=task.failures + 1, last_error=error) if counts else down
        case TaskCompleted(result=result):
            return _end(task, record, "completed", result=result)
        case TaskFailed(code=code, message=message):
            return _end(task, record, "failed", error=Problem(code=code, message=message))
        case TaskCancelled(by=by, reason=reason):
            cancelled = replace(task, halt=Halt(by=by, reason=reason, at=record.at))
            return _end(cancelled, record, "cancelled", error=Problem(code="cancelled", message=reason or "cancelled"))
        case TaskTimedOut(deadline=deadline):
            message = f"not done by its deadline, {deadline.isoformat(timespec='milliseconds')}"
            return _end(task, record, "timed_out", error=Problem(code="timeout", message=message))
        case UnknownFact(tag=tag):
            return replace(task, unknown=tag)
        case _:
            assert_never(record.fact)


def _created(task: Task, record: Record, fact: TaskCreated) -> Task:
    return replace(
        _with_blob(task, record.blob),
        status="pending",
        agent=fact.agent,
        input=fact.input,
        title=fact.title,
        session_id=fact.session_id,
        mode=fact.mode,
        approval_mode=fact.approval_mode,
        dialect=fact.dialect,
        fingerprint=fact.fingerprint,
        metadata=fact.metadata,
        files=fact.files,
        earlier=fact.earlier,
        max_failures=fact.max_failures,
        deadline=fact.deadline,
        correlation_id=record.correlation_id,
        created_at=record.at,
        runnable=fact.runnable,
    )


def _started(task: Task, record: Record, fact: TaskStarted) -> Task:
    return replace(
        _void(task),
        status="running",
        run=fact.run,
        worker=fact.worker,
        runnable=False,
        retry_at=None,
        failures=task.failures + 1 if fact.lost else task.failures,
        last_error=Problem(code="worker_lost", message=f"run {task.run} was lost") if fact.lost else task.last_error,
        started_at=task.started_at or record.at,
    )


def _step_finished(task: Task, fact: StepFinished | ToolUsed) -> Task:
    own_text = task.step_text if task.text_step == fact.step else ""
    said = own_text or fact.message or ""
    return replace(
        _void(task),
        steps=fact.step + 1,
        text=(task.text + said)[-MAX_PARTIAL_TEXT:],
        usage=_sum(task.usage, fact.usage),
    )


def _set_down(task: Task, status: Status) -> Task:
    """Nobody runs it any more."""
    return replace(_void(task), status=status, worker=None, runnable=False)


def _void(task: Task) -> Task:
    """No step is in hand; what the unfinished one had said is void: the next run says it again."""
    return replace(task, in_hand=None, step_text="", text_step=-1, text_length=0)


def _unpaused(task: Task) -> Status:
    if task.question is not None:
        return "waiting_for_input"
    return "pending" if task.review is None else "awaiting_review"


def _end(
    task: Task, record: Record, status: Status, *, result: str | None = None, error: Problem | None = None
) -> Task:
    # The unfinished step's text is kept: whoever cancels still sees what was said.
    return replace(
        _with_blob(task, record.blob),
        status=status,
        ended_at=record.at,
        result=result,
        error=error,
        worker=None,
        runnable=False,
        in_hand=None,
        question=None,
        review=None,
        asked_step=None,
        pause_requested=False,
        retry_at=None,
    )


def _with_blob(task: Task, blob: BlobReference | None) -> Task:
    if blob is None:
        return task
    return replace(task, blobs=task.blobs | dict.fromkeys(blob.fields, blob))


def _sum(total: Usage | None, more: Usage | None) -> Usage | None:
    if more is None or total is None:
        return more or total
    return Usage(
        provider=more.provider or total.provider,
        model=more.model or total.model,
        input_tokens=total.input_tokens + more.input_tokens,
        output_tokens=total.output_tokens + more.output_tokens,
        cost=round(total.cost + more.cost, 10),
    )
