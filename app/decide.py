"""`decide`, `Rejected`: what may happen next. Pure: no clock, no ids, no log line.

`decide(command, task)` gives one fact, or None when the wish is already true, or why not.
"""

from typing import Literal, assert_never

from msgspec import Struct

from app.commands import (
    CancelTask,
    Command,
    CompleteTask,
    CreateTask,
    DecideReview,
    FailRun,
    FailTask,
    FinishStep,
    PauseTask,
    ProducePartial,
    ProposePlan,
    QueueTask,
    ReceiveInput,
    RequestInput,
    RequestPause,
    RequestReview,
    ResumeTask,
    StartRun,
    StartStep,
    TimeOutTask,
    WorkerCommand,
)
from eventstore.events import (
    MAX_FACTS,
    InputReceived,
    InputRequested,
    PartialProduced,
    PauseRequested,
    PlanProposed,
    ReviewDecided,
    ReviewRequested,
    RunFailed,
    StepFinished,
    StepStarted,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFact,
    TaskFailed,
    TaskPaused,
    TaskQueued,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    ToolUsed,
)
from projections.task import Task

Reason = Literal[
    "not_found",
    "already_exists",
    "key_reused",
    "ended",
    "stale_run",
    "not_waiting",
    "moved_on",
    "not_runnable",
    "out_of_order",
    "deadline_moved",
    "written_by_newer_release",
]


class Rejected(Struct, frozen=True):
    """Why a command gives no fact: a reason for programs, a sentence for people."""

    reason: Reason
    detail: str


Decision = TaskFact | None | Rejected


def decide(command: Command, task: Task) -> Decision:
    """One fact, None (the wish is already true), or Rejected. The whole domain is this table and those below."""
    if task.unknown is not None:
        return Rejected("written_by_newer_release", f"{task.unknown} is unknown to this release")
    if command.key is not None and command.key in task.keys and not isinstance(command, CreateTask):
        return None
    if command.at_version not in (None, task.version):
        return Rejected("moved_on", f"the task is at version {task.version}, not {command.at_version}")
    match task.status:
        case "absent":
            decision = _create(command) if isinstance(command, CreateTask) else Rejected("not_found", "no such task")
        case "completed" | "failed" | "cancelled" | "timed_out":
            decision = _after_the_end(command, task)
        case "running":
            decision = _while_running(command, task)
        case "pending" | "queued":
            decision = _while_pending(command, task)
        case "waiting_for_input" | "awaiting_review":
            decision = _while_asking(command, task)
        case "paused":
            decision = _while_paused(command, task)
        case _:
            assert_never(task.status)
    return _bounded(decision, task)


def _while_pending(command: Command, task: Task) -> Decision:
    match command:
        case CreateTask():
            return _create_again(command, task)
        case QueueTask(limit=limit):
            return None if task.status == "queued" else TaskQueued(limit=limit)
        case StartRun(run=run):
            if task.pause_requested and run == task.run + 1:
                return TaskPaused()
            return _start(command, task, lost=False)
        case RequestPause(reason=reason):
            return TaskPaused(reason=reason)
        case ResumeTask():
            return TaskResumed(runnable=task.runnable) if task.pause_requested else None
        case ReceiveInput(text=text):
            return InputReceived(text=text)
        case DecideReview():
            return _nothing_to_review(command, task)
        case CancelTask() | TimeOutTask():
            return _end_early(command, task)
        case (
            StartStep()
            | FinishStep()
            | ProducePartial()
            | ProposePlan()
            | RequestInput()
            | RequestReview()
            | PauseTask()
            | FailRun()
            | CompleteTask()
            | FailTask()
        ):
            return _stale(command, task)
        case _:
            assert_never(command)


def _while_running(command: Command, task: Task) -> Decision:
    match command:
        case CreateTask():
            return _create_again(command, task)
        case QueueTask():
            return Rejected("not_runnable", "the task runs")
        case StartRun(run=run, worker=worker):
            if run == task.run and worker == task.worker:
                return None
            if run == task.run + 1 and task.failures + 1 >= task.max_failures:
                return TaskFailed(code="too_many_failures", message=f"run {task.run} was lost; {_failures(task)}")
            return _start(command, task, lost=True)
        case RequestPause(reason=reason):
            return None if task.pause_requested else PauseRequested(reason=reason)
        case ResumeTask():
            return TaskResumed() if task.pause_requested else None
        case ReceiveInput(text=text):
            return InputReceived(text=text)
        case DecideReview():
            return _nothing_to_review(command, task)
        case CancelTask() | TimeOutTask():
            return _end_early(command, task)
        case (
            StartStep()
            | FinishStep()
            | ProducePartial()
            | ProposePlan()
            | RequestInput()
            | RequestReview()
            | PauseTask()
            | FailRun()
            | CompleteTask()
            | FailTask()
        ):
            return _run(command, task) if command.run == task.run else _stale(command, task)
        case _:
            assert_never(command)


def _while_asking(command: Command, task: Task) -> Decision:
    match command:
        case CreateTask():
            return _create_again(command, task)
        case QueueTask() | StartRun():
            return Rejected("not_runnable", f"the task is {task.status}")
        case RequestPause(reason=reason):
            return TaskPaused(reason=reason)
        case ResumeTask():
            return TaskResumed() if task.pause_requested else None
        case ReceiveInput(text=text):
            if task.question is None:
                return InputReceived(text=text)
            return InputReceived(text=text, step=task.asked_step, runnable=True)
        case DecideReview():
            return _review(command, task, runnable=True)
        case CancelTask() | TimeOutTask():
            return _end_early(command, task)
        case RequestInput(run=run, step=step) | RequestReview(run=run, step=step) | ProposePlan(run=run, step=step):
            # A worker that repeats its question because it does not know whether it was heard.
            return None if (run, step) == (task.run, task.asked_step) else _stale(command, task)
        case StartStep() | FinishStep() | ProducePartial() | PauseTask() | FailRun() | CompleteTask() | FailTask():
            return _stale(command, task)
        case _:
            assert_never(command)


def _while_paused(command: Command, task: Task) -> Decision:
    match command:
        case CreateTask():
            return _create_again(command, task)
        case QueueTask() | StartRun():
            return Rejected("not_runnable", "the task is paused")
        case RequestPause():
            return None
        case ResumeTask():
            return TaskResumed(runnable=task.question is None and task.review is None)
        case ReceiveInput(text=text):
            return InputReceived(text=text, step=task.asked_step if task.question is not None else None)
        case DecideReview():
            return _review(command, task, runnable=False)
        case CancelTask() | TimeOutTask():
            return _end_early(command, task)
        case PauseTask(run=run):
            return None if run == task.run else _stale(command, task)
        case (
            StartStep()
            | FinishStep()
            | ProducePartial()
            | ProposePlan()
            | RequestInput()
            | RequestReview()
            | FailRun()
            | CompleteTask()
            | FailTask()
        ):
            return _stale(command, task)
        case _:
            assert_never(command)


def _after_the_end(command: Command, task: Task) -> Decision:
    match command:
        case CreateTask():
            return _create_again(command, task)
        case CancelTask():
            return None if task.status == "cancelled" else _ended(task)
        case TimeOutTask(deadline=deadline):
            return None if task.status == "timed_out" and deadline == task.deadline else _ended(task)
        case CompleteTask(run=run, result=result):
            same = task.status == "completed" and (run, result) == (task.run, task.result)
            return None if same and "result" not in task.blobs else _ended(task)
        case FailTask(code=code):
            return None if task.status == "failed" and task.error and task.error.code == code else _ended(task)
        case (
            QueueTask()
            | StartRun()
            | StartStep()
            | FinishStep()
            | ProducePartial()
            | ProposePlan()
            | RequestInput()
            | RequestReview()
            | PauseTask()
            | FailRun()
            | ReceiveInput()
            | DecideReview()
            | RequestPause()
            | ResumeTask()
        ):
            return _ended(task)
        case _:
            assert_never(command)


def _run(command: WorkerCommand, task: Task) -> Decision:
    """The run in hand speaks. A new step under a wished-for pause gives the pause instead."""
    match command:
        case StartStep(step=step, kind=kind, name=name):
            if step < task.steps or (task.in_hand is not None and task.in_hand.step == step):
                return None
            if step != task.steps or task.in_hand is not None:
                return _out_of_order(step, task)
            if task.pause_requested:
                return TaskPaused()
            return StepStarted(
                run=task.run, step=step, kind=kind, name=name, input=command.input, input_sha256=command.input_sha256
            )
        case FinishStep(step=step):
            if step < task.steps:
                return None
            return _finish(command, task) if step == task.steps else _out_of_order(step, task)
        case ProducePartial(step=step, offset=offset, text=text):
            had = task.text_length if task.text_step == step else 0
            if step < task.steps or offset + len(text) <= had:
                return None
            if step != task.steps or offset != had:
                return _out_of_order(step, task)
            return PartialProduced(run=task.run, step=step, offset=offset, text=text)
        case ProposePlan(step=step, plan=plan):
            confirm = task.approval_mode == "confirm"
            fact = PlanProposed(
                run=task.run, step=step, plan=plan, needs_approval=confirm, input_sha256=command.input_sha256
            )
            return _new_step(fact, task)
        case RequestInput(step=step, question=question):
            sha256 = command.input_sha256
            return _new_step(InputRequested(run=task.run, step=step, question=question, input_sha256=sha256), task)
        case RequestReview(step=step, subject=subject):
            sha256 = command.input_sha256
            return _new_step(ReviewRequested(run=task.run, step=step, subject=subject, input_sha256=sha256), task)
        case PauseTask():
            return TaskPaused() if task.pause_requested else Rejected("not_waiting", "no pause is wished for")
        case FailRun(error=error, retry_at=retry_at):
            if not command.counts:
                return RunFailed(run=task.run, error=error, retry_at=retry_at, counts=False)
            if task.failures + 1 >= task.max_failures:
                return TaskFailed(code=error.code, message=f"{error.message} ({_failures(task)})")
            return RunFailed(run=task.run, error=error, retry_at=retry_at)
        case CompleteTask(result=result):
            return TaskCompleted(run=task.run, result=result)
        case FailTask(code=code, message=message):
            return TaskFailed(code=code, message=message)
        case _:
            assert_never(command)


def _new_step(fact: PlanProposed | InputRequested | ReviewRequested, task: Task) -> Decision:
    if fact.step < task.steps:
        return None
    if fact.step != task.steps or task.in_hand is not None:
        return _out_of_order(fact.step, task)
    return TaskPaused() if task.pause_requested else fact


def _finish(command: FinishStep, task: Task) -> Decision:
    if command.kind == "tool":
        return ToolUsed(
            run=task.run,
            step=command.step,
            tool=command.name,
            output=command.output,
            error=command.error,
            took=command.took,
            input_sha256=command.input_sha256,
            message=command.message,
            usage=command.usage,
        )
    return StepFinished(
        run=task.run,
        step=command.step,
        kind=command.kind,
        name=command.name,
        output=command.output,
        error=command.error,
        took=command.took,
        input_sha256=command.input_sha256,
        message=command.message,
        usage=command.usage,
    )


def _create(command: CreateTask) -> TaskCreated:
    return TaskCreated(
        agent=command.agent,
        fingerprint=command.fingerprint,
        input=command.input,
        title=command.title,
        session_id=command.session_id,
        mode=command.mode,
        approval_mode=command.approval_mode,
        deadline=command.deadline,
        max_failures=command.max_failures,
        dialect=command.dialect,
        metadata=command.metadata,
        files=command.files,
        earlier=command.earlier,
    )


def _create_again(command: CreateTask, task: Task) -> Decision:
    if command.key is None:
        return Rejected("already_exists", "a task with this id exists")
    if command.fingerprint == task.fingerprint:
        return None
    return Rejected("key_reused", "this idempotency key was used with another request")


def _start(command: StartRun, task: Task, *, lost: bool) -> Decision:
    if command.run == task.run + 1:
        return TaskStarted(run=command.run, worker=command.worker, lost=lost)
    return Rejected("stale_run", f"the next run is {task.run + 1}, not {command.run}")


def _review(command: DecideReview, task: Task, *, runnable: bool) -> Decision:
    if task.review is None or task.asked_step is None or command.step not in (None, task.asked_step):
        return _nothing_to_review(command, task)
    return ReviewDecided(
        step=task.asked_step,
        approved=command.approved,
        feedback=command.feedback,
        runnable=runnable,
        of_plan=task.plan_awaits_review,
    )


def _nothing_to_review(command: DecideReview, task: Task) -> Rejected:
    wish = "approve" if command.approved else "refuse"
    return Rejected("not_waiting", f"nothing to {wish}: the task is {task.status}")


def _end_early(command: CancelTask | TimeOutTask, task: Task) -> Decision:
    match command:
        case CancelTask(by=by, reason=reason):
            return TaskCancelled(by=by, reason=reason, was_paused=task.status == "paused")
        case TimeOutTask(deadline=deadline):
            if deadline == task.deadline:
                return TaskTimedOut(deadline=deadline)
            return Rejected("deadline_moved", "the task has another deadline")
        case _:
            assert_never(command)


def _ended(task: Task) -> Rejected:
    return Rejected("ended", f"the task is {task.status}")


def _stale(command: WorkerCommand, task: Task) -> Rejected:
    return Rejected("stale_run", f"run {command.run} does not hold the task: it is {task.status}, run {task.run}")


def _out_of_order(step: int, task: Task) -> Rejected:
    return Rejected("out_of_order", f"step {step} can't come now: {task.steps} steps are finished")


def _failures(task: Task) -> str:
    return f"failure {task.failures + 1} of {task.max_failures}"


def _bounded(decision: Decision, task: Task) -> Decision:
    """A task's history is bounded: the last fact allowed is an end."""
    if task.version + 1 < MAX_FACTS or decision is None:
        return decision
    if isinstance(decision, Rejected | TaskCompleted | TaskFailed | TaskCancelled | TaskTimedOut):
        return decision
    return TaskFailed(code="too_many_facts", message=f"a task has at most {MAX_FACTS} facts")
