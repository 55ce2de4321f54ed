"""Commands with defaults for what a test does not say, and one of each kind."""

from datetime import datetime

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
from eventstore.events import Problem, StepKind
from tests.given import DEADLINE, PLAN

BROKEN = Problem(code="broken", message="it broke")


def create(*, key: str | None = None, fingerprint: str = "f1") -> CreateTask:
    return CreateTask(agent="simulator", fingerprint=fingerprint, key=key)


def start_run(run: int = 1, *, worker: str = "w1") -> StartRun:
    return StartRun(run=run, worker=worker)


def start_step(step: int = 0, *, run: int = 1, kind: StepKind = "tool", name: str = "search") -> StartStep:
    return StartStep(run=run, step=step, kind=kind, name=name)


def finish_step(step: int = 0, *, run: int = 1, kind: StepKind = "text", name: str = "") -> FinishStep:
    return FinishStep(run=run, step=step, kind=kind, name=name)


def produce(text: str, *, step: int = 0, offset: int = 0, run: int = 1) -> ProducePartial:
    return ProducePartial(run=run, step=step, offset=offset, text=text)


def propose_plan(step: int = 0, *, run: int = 1) -> ProposePlan:
    return ProposePlan(run=run, step=step, plan=PLAN)


def request_input(step: int = 0, *, run: int = 1) -> RequestInput:
    return RequestInput(run=run, step=step, question="Which one?")


def request_review(step: int = 0, *, run: int = 1) -> RequestReview:
    return RequestReview(run=run, step=step, subject="Send the mail?")


def fail_run(run: int = 1, *, retry_at: datetime | None = None) -> FailRun:
    return FailRun(run=run, error=BROKEN, retry_at=retry_at)


def complete(run: int = 1, *, result: str | None = "done") -> CompleteTask:
    return CompleteTask(run=run, result=result)


def fail(run: int = 1, *, code: str = "broken") -> FailTask:
    return FailTask(run=run, code=code, message="it broke")


def worker_commands(run: int = 1, step: int = 0) -> list[WorkerCommand]:
    """One of each that only the run in hand may say."""
    return [
        start_step(step, run=run),
        finish_step(step, run=run),
        produce("text", step=step, run=run),
        propose_plan(step, run=run),
        request_input(step, run=run),
        request_review(step, run=run),
        PauseTask(run=run),
        fail_run(run),
        complete(run),
        fail(run),
    ]


def client_commands() -> list[Command]:
    """One of each that a client may say about a task that is there."""
    return [
        ReceiveInput(text="The blue one"),
        DecideReview(approved=True),
        DecideReview(approved=False, feedback="not yet"),
        RequestPause(),
        ResumeTask(),
        CancelTask(by="ann"),
    ]


def every_command(run: int = 1, step: int = 0) -> list[Command]:
    """One of each, the worker's with this run and step."""
    others = [create(), create(key="k1"), QueueTask(limit=1), start_run(run), TimeOutTask(deadline=DEADLINE)]
    return [*others, *worker_commands(run, step), *client_commands()]


def name_of(command: object) -> str:
    """The command's name, for a parametrized test's id."""
    return type(command).__name__
