"""Tests as sentences: `given(created(), started()).when(CancelTask(by="ann")).then(TaskCancelled(by="ann"))`.

`history` turns facts into records as a log gives them; the builders below have defaults for what a test does not say.
"""

from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import NAMESPACE_OID, uuid5

from msgspec import Struct

from app.commands import Command
from app.decide import Decision, Reason, Rejected, decide
from eventstore.codec import encode, recorded
from eventstore.events import (
    ApprovalMode,
    BlobReference,
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
    TaskFact,
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
from eventstore.log import Arrival, Recorded, task_subject
from projections.task import INITIAL, Status, Task, evolve

OWNER = Owner("ann")
TASK_ID = TaskId("task_01890a5d-ac96-774b-bcce-b302099a8057")
BEGIN = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEADLINE = BEGIN + timedelta(hours=1)
PLAN = (PlannedStep(tool="search", why="to find it"), PlannedStep(tool="read"))


class With(Struct, frozen=True, kw_only=True):
    """A fact whose record says more than the others: the hash of an idempotency key, a blob."""

    fact: TaskFact | UnknownFact
    key: str | None = None
    blob: BlobReference | None = None


Given = TaskFact | UnknownFact | With


def record_after(
    previous: Recorded | None, said: Given, *, owner: Owner = OWNER, task_id: TaskId = TASK_ID, at: datetime = BEGIN
) -> Recorded:
    """The record that follows: version, chain and time go on, and the sequence leaves a hole for other tasks."""
    told = said if isinstance(said, With) else With(fact=said)
    version = previous.record.version + 1 if previous else 1
    record = Record(
        record_id=uuid5(NAMESPACE_OID, f"{task_id} {version}").hex,
        version=version,
        at=max(at, previous.record.at + timedelta(seconds=1)) if previous else at,
        actor="test",
        causation_id=previous.record.record_id if previous else None,
        correlation_id="request-1",
        previous=previous.sha256 if previous else "",
        key=told.key,
        blob=told.blob,
        fact=told.fact,
    )
    sequence = previous.sequence + 3 if previous else 7
    return recorded(Arrival(sequence, task_subject(owner, task_id), encode(record)))


def history(*facts: Given, owner: Owner = OWNER, task_id: TaskId = TASK_ID) -> list[Recorded]:
    """These facts as one task's records, a second apart, read back from their stored bytes."""
    records: list[Recorded] = []
    for fact in facts:
        records.append(record_after(records[-1] if records else None, fact, owner=owner, task_id=task_id))
    return records


def fold(*facts: Given) -> Task:
    """The task to which these facts happened."""
    return reduce(evolve, history(*facts), INITIAL)


class Decided(Struct, frozen=True):
    """What came of a command."""

    decision: Decision

    def then(self, fact: TaskFact) -> None:
        assert self.decision == fact

    def then_nothing(self) -> None:
        assert self.decision is None

    def then_rejected(self, reason: Reason) -> None:
        assert isinstance(self.decision, Rejected), self.decision
        assert self.decision.reason == reason
        assert self.decision.detail


class GivenTask(Struct, frozen=True):
    """A task with a past."""

    task: Task

    def when(self, command: Command) -> Decided:
        return Decided(decide(command, self.task))


def given(*facts: Given) -> GivenTask:
    """A task to which these facts happened."""
    return GivenTask(fold(*facts))


def created(
    *,
    agent: str = "simulator",
    fingerprint: str = "f1",
    input: Json = None,
    approval_mode: ApprovalMode = "auto",
    deadline: datetime | None = None,
    max_failures: int = 5,
) -> TaskCreated:
    return TaskCreated(
        agent=agent,
        fingerprint=fingerprint,
        input=input,
        approval_mode=approval_mode,
        deadline=deadline,
        max_failures=max_failures,
    )


def queued(limit: int = 32) -> TaskQueued:
    return TaskQueued(limit=limit)


def started(run: int = 1, *, worker: str = "w1", lost: bool = False) -> TaskStarted:
    return TaskStarted(run=run, worker=worker, lost=lost)


def step_started(step: int = 0, *, run: int = 1, kind: StepKind = "tool", name: str = "search") -> StepStarted:
    return StepStarted(run=run, step=step, kind=kind, name=name)


def step_finished(
    step: int = 0, *, run: int = 1, kind: StepKind = "text", message: str | None = None, usage: Usage | None = None
) -> StepFinished:
    return StepFinished(run=run, step=step, kind=kind, message=message, usage=usage)


def tool_used(
    step: int = 0, *, run: int = 1, tool: str = "search", output: Json = None, usage: Usage | None = None
) -> ToolUsed:
    return ToolUsed(run=run, step=step, tool=tool, output=output, usage=usage)


def partial(text: str, *, step: int = 0, offset: int = 0, run: int = 1) -> PartialProduced:
    return PartialProduced(run=run, step=step, offset=offset, text=text)


def plan_proposed(step: int = 0, *, run: int = 1, needs_approval: bool = False) -> PlanProposed:
    return PlanProposed(run=run, step=step, plan=PLAN, needs_approval=needs_approval)


def input_requested(step: int = 0, *, run: int = 1, question: str = "Which one?") -> InputRequested:
    return InputRequested(run=run, step=step, question=question)


def answer(step: int = 0, *, text: str = "The blue one", runnable: bool = True) -> InputReceived:
    return InputReceived(text=text, step=step, runnable=runnable)


def message(text: str = "Hurry up") -> InputReceived:
    return InputReceived(text=text)


def review_requested(step: int = 0, *, run: int = 1, subject: str = "Send the mail?") -> ReviewRequested:
    return ReviewRequested(run=run, step=step, subject=subject)


def review_decided(step: int = 0, *, approved: bool = True, runnable: bool = True) -> ReviewDecided:
    return ReviewDecided(step=step, approved=approved, runnable=runnable)


def pause_requested(reason: str | None = None) -> PauseRequested:
    return PauseRequested(reason=reason)


def paused(reason: str | None = None) -> TaskPaused:
    return TaskPaused(reason=reason)


def resumed(*, runnable: bool = True) -> TaskResumed:
    return TaskResumed(runnable=runnable)


def run_failed(run: int = 1, *, message: str = "it broke", retry_at: datetime | None = None) -> RunFailed:
    return RunFailed(run=run, error=Problem(code="broken", message=message), retry_at=retry_at)


def completed(run: int = 1, *, result: str | None = "done") -> TaskCompleted:
    return TaskCompleted(run=run, result=result)


def failed(code: str = "broken", *, message: str = "it broke") -> TaskFailed:
    return TaskFailed(code=code, message=message)


def cancelled(*, by: str = "ann", reason: str | None = None) -> TaskCancelled:
    return TaskCancelled(by=by, reason=reason)


def timed_out(deadline: datetime = DEADLINE) -> TaskTimedOut:
    return TaskTimedOut(deadline=deadline)


LIVES: dict[Status, tuple[TaskFact, ...]] = {
    "absent": (),
    "pending": (created(),),
    "queued": (created(), queued()),
    "running": (created(), started()),
    "waiting_for_input": (created(), started(), input_requested()),
    "awaiting_review": (created(), started(), review_requested()),
    "paused": (created(), started(), pause_requested(), paused()),
    "completed": (created(), started(), completed()),
    "failed": (created(), started(), failed()),
    "cancelled": (created(), cancelled()),
    "timed_out": (created(deadline=DEADLINE), timed_out()),
}
"""A short life that ends in each status."""
