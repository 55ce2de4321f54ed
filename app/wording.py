"""How facts and tasks read in a terminal: in words, aligned, and harmless (no control character gets through)."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import assert_never

import msgspec

from app.dialects.native import TaskBody
from eventstore.events import (
    InputReceived,
    InputRequested,
    Json,
    PartialProduced,
    PauseRequested,
    PlannedStep,
    PlanProposed,
    Problem,
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
    UnknownFact,
    tag_of,
)
from eventstore.log import Recorded
from projections.task import Status

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {9: "\\t", 10: "\\n", 13: "\\r"}
"""What an agent says, or its user, must not move the cursor of whoever reads it."""
CONTROLS_BUT_LINES = {code: shown for code, shown in CONTROLS.items() if code not in (9, 10)}


def one_line(text: str) -> str:
    """Printable, on one line."""
    return text.translate(CONTROLS)


def lines(text: str) -> str:
    """Printable; lines stay lines."""
    return text.replace("\r\n", "\n").translate(CONTROLS_BUT_LINES)


def line(recorded: Recorded) -> str:
    """One fact, as one line: when, what, and what about it."""
    record = recorded.record
    name = tag_of(record.fact).removeprefix("task.")
    return f"{record.at.astimezone():%H:%M:%S}  {one_line(name):<16}  {one_line(about(record.fact))}".rstrip()


def about(fact: TaskFact | UnknownFact) -> str:
    """What there is to say about a fact, beside its name. (A table, a case a fact: long, and not to be cut.)"""
    match fact:
        case TaskCreated(agent=agent, title=title):
            return f"for {agent}" + (f": {title}" if title else "")
        case TaskQueued(limit=limit):
            return f"the agent is at its limit of {limit}"
        case TaskStarted(run=run, worker=worker, lost=lost):
            return f"run {run} on {worker}" + ("; the run before was lost" if lost else "")
        case StepStarted(step=step, kind=kind, name=name):
            return f"{step}: {name or kind}"
        case StepFinished(step=step, kind=kind, name=name, message=message):
            return f"{step}: {name or kind}, {_outcome(fact)}" + (f": {message}" if message else "")
        case ToolUsed(tool=tool):
            return f"{tool}, {_outcome(fact)}"
        case PartialProduced(text=text):
            return text
        case PlanProposed(plan=plan, needs_approval=needs_approval):
            return planned(plan) + (" (awaits approval)" if needs_approval else "")
        case InputRequested(question=question):
            return question
        case InputReceived(text=text):
            return text
        case ReviewRequested(subject=subject):
            return subject
        case ReviewDecided(approved=approved, feedback=feedback):
            return ("approved" if approved else "refused") + (f": {feedback}" if feedback else "")
        case PauseRequested(reason=reason) | TaskPaused(reason=reason):
            return reason or ""
        case TaskResumed():
            return ""
        case RunFailed(run=run, counts=False):
            return f"run {run} was given back by a worker that stops"
        case RunFailed(run=run, error=error, retry_at=retry_at):
            return f"run {run}: {problem(error)}" + (f"; again at {moment(retry_at)}" if retry_at else "")
        case TaskCompleted(result=result):
            return result or ""
        case TaskFailed(code=code, message=message):
            return problem(Problem(code=code, message=message))
        case TaskCancelled(by=by, reason=reason):
            return f"by {by}" + (f": {reason}" if reason else "")
        case TaskTimedOut(deadline=deadline):
            return f"its deadline was {moment(deadline)}"
        case UnknownFact():
            return "(a newer release wrote this)"
        case _:
            assert_never(fact)


def _outcome(fact: StepFinished | ToolUsed) -> str:
    return f"{fact.took:.1f} s" + (f", failed: {problem(fact.error)}" if fact.error else "")


def problem(error: Problem) -> str:
    """Code and message."""
    return f"{error.code}: {error.message}" if error.message else error.code


def planned(plan: Sequence[PlannedStep]) -> str:
    """A plan, on one line."""
    return ", then ".join(f"{step.tool} ({step.why})" if step.why else step.tool for step in plan)


def moment(at: datetime) -> str:
    """A time, on this machine's clock."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def as_it_was(body: TaskBody, at: int) -> str:
    """Which past this is: the fact that it ends with, of those that the log held at a sequence."""
    since = f", its last fact then at {moment(body.updated_at)}" if body.updated_at else ""
    return f"as it was at sequence {at}: version {body.version}{since}"


def lasted(seconds: float) -> str:
    """A length of time."""
    whole = int(seconds)
    if whole < 60:
        return f"{max(seconds, 0.0):.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def whats_needed(status: Status, task_id: str, question: str | None, review: str | None) -> str | None:
    """What somebody has to do before the task goes on, and with which command; None: nothing."""
    match status:
        case "waiting_for_input":
            return f"it asks: {one_line(question or '')}\nanswer with: tasktrail answer {task_id} TEXT"
        case "awaiting_review":
            return (
                f"it awaits your review: {one_line(review or '')}\n"
                f"decide with: tasktrail approve {task_id}, or: tasktrail refuse {task_id}"
            )
        case "paused":
            return f"it is paused\ngo on with: tasktrail resume {task_id}"
        case "absent" | "pending" | "queued" | "running" | "completed" | "failed" | "cancelled" | "timed_out":
            return None
        case _:
            assert_never(status)


def card(body: TaskBody, *, now: datetime | None = None) -> str:
    """A task as it is (or was, `now`): what it has to say, one aligned line each; what it lacks is left out."""
    elapsed = None
    if body.created_at is not None:
        elapsed = lasted(((body.ended_at or now or datetime.now(UTC)) - body.created_at).total_seconds())
        elapsed += " (up to its last fact then)" if now is not None and body.ended_at is None else ""
    rows: list[tuple[str, str | None]] = [
        ("task", body.task_id),
        ("status", body.status + (" (a pause is wished for)" if body.pause_requested else "")),
        ("agent", body.agent),
        ("title", body.title),
        ("session", body.session_id),
        ("created", moment(body.created_at) if body.created_at else None),
        ("started", moment(body.started_at) if body.started_at else None),
        ("ended", moment(body.ended_at) if body.ended_at else None),
        ("elapsed", elapsed),
        ("deadline", moment(body.deadline) if body.deadline else None),
        ("runs", f"{body.run}, {body.failures} of at most {body.max_failures} failures" if body.run else None),
        ("approval", body.approval_mode if body.approval_mode != "auto" else None),
        ("plan", planned(body.plan)),
        ("tools", ", ".join(body.tools_used)),
        ("usage", _spent(body)),
        ("metadata", msgspec.json.encode(body.metadata).decode() if body.metadata else None),
        ("input", _said(body.input)),
        ("text", body.partial_text if body.partial_text != body.result else None),
        ("question", body.question),
        ("review", body.review),
        ("result", body.result),
        ("error", problem(body.error) if body.error else None),
    ]
    width = max(len(label) for label, _ in rows) + 2
    hang = "\n" + " " * width
    return "\n".join(f"{label:<{width}}{lines(said).rstrip().replace(chr(10), hang)}" for label, said in rows if said)


def _said(input: Json) -> str | None:
    if input is None or isinstance(input, str):
        return input
    return msgspec.json.encode(input).decode()


def _spent(body: TaskBody) -> str | None:
    if body.usage is None:
        return None
    usage = body.usage
    by = " ".join(name for name in (usage.provider, usage.model) if name)
    figures = f"{usage.input_tokens} tokens in, {usage.output_tokens} out, {usage.cost:.4f} USD"
    return f"{figures} ({by})" if by else figures


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under their heads."""
    shown = [list(heads), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(heads))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown
    )
