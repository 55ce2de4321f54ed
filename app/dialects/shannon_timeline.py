"""Shannon's timeline: a task's facts as a workflow engine would have them. Pure."""

from datetime import datetime
from typing import Literal, assert_never

import msgspec
from msgspec import Struct

from eventstore.cursor import event_id
from eventstore.events import (
    InputReceived,
    InputRequested,
    Json,
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
    TaskFailed,
    TaskPaused,
    TaskQueued,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    ToolUsed,
    UnknownFact,
)
from eventstore.log import Recorded

MAX_MESSAGE = 200

Kind = Literal[
    "WF_STARTED",
    "WF_COMPLETED",
    "WF_FAILED",
    "WF_TIMEOUT",
    "WF_CANCELLED",
    "ACT_STARTED",
    "ACT_COMPLETED",
    "ACT_FAILED",
    "CHILD_STARTED",
    "CHILD_FAILED",
    "SIG_RECEIVED",
    "MARKER_RECORDED",
    "EVENT",
]
FULL_ONLY: frozenset[Kind] = frozenset({"ACT_STARTED", "MARKER_RECORDED", "EVENT"})


class TimelineEvent(Struct, kw_only=True, omit_defaults=True):
    """One line. `payload` is the fact, where it was asked for."""

    id: str
    workflow_id: str
    type: Kind
    message: str
    timestamp: datetime
    seq: int
    created_at: datetime
    payload: Json = None


class Stats(Struct):
    """How many there are, and of which kinds."""

    total: int
    mode: Literal["summary", "full"]


class Timeline(Struct):
    """The whole of it."""

    workflow_id: str
    events: list[TimelineEvent]
    stats: Stats


class Persisted(Struct, kw_only=True):
    """To keep it was asked for; it is kept in any case."""

    status: Literal["accepted"] = "accepted"
    workflow_id: str
    count: int


def timeline_of(recorded: Recorded, *, full: bool, payload: bool) -> list[TimelineEvent]:
    """The fact's line, if this timeline has one."""
    kind, message = _told(recorded)
    if kind in FULL_ONLY and not full:
        return []
    record = recorded.record
    told = TimelineEvent(
        id=event_id(recorded),
        workflow_id=recorded.task_id,
        type=kind,
        message=message[:MAX_MESSAGE],
        timestamp=record.at,
        seq=record.version,
        created_at=record.at,
    )
    if payload:
        told.payload = msgspec.to_builtins(record.fact)
    return [told]


def _told(recorded: Recorded) -> tuple[Kind, str]:
    fact = recorded.record.fact
    match fact:
        case TaskCreated(agent=agent):
            return "WF_STARTED", f"Workflow for agent {agent}"
        case TaskStarted(run=run):
            return "CHILD_STARTED", f"Run {run}"
        case RunFailed(run=run, error=error):
            return "CHILD_FAILED", f"Run {run}: {error.message}"
        case StepStarted(step=step, name=name):
            return "ACT_STARTED", f"Step {step}: {name}"
        case ToolUsed(step=step, tool=tool, error=error):
            return "ACT_FAILED" if error else "ACT_COMPLETED", f"Step {step}: {tool}"
        case StepFinished(step=step, kind=kind, name=name, error=error):
            return "ACT_FAILED" if error else "ACT_COMPLETED", f"Step {step}: {name or kind}"
        case InputReceived():
            return "SIG_RECEIVED", "input"
        case ReviewDecided(approved=approved):
            return "SIG_RECEIVED", "approved" if approved else "refused"
        case PauseRequested():
            return "SIG_RECEIVED", "pause"
        case TaskResumed():
            return "SIG_RECEIVED", "resume"
        case TaskPaused():
            return "MARKER_RECORDED", "paused"
        case TaskQueued():
            return "MARKER_RECORDED", "queued"
        case PlanProposed():
            return "MARKER_RECORDED", "plan"
        case InputRequested(question=question):
            return "MARKER_RECORDED", f"question: {question}"
        case ReviewRequested(subject=subject):
            return "MARKER_RECORDED", f"review: {subject}"
        case PartialProduced(text=text):
            return "EVENT", f"text, {len(text)} characters"
        case UnknownFact(tag=tag):
            return "EVENT", tag
        case TaskCompleted():
            return "WF_COMPLETED", "Workflow completed"
        case TaskFailed(code=code, message=message):
            return "WF_FAILED", message or code
        case TaskCancelled(reason=reason):
            return "WF_CANCELLED", reason or "Workflow cancelled"
        case TaskTimedOut():
            return "WF_TIMEOUT", "Not done by its deadline"
        case _:
            assert_never(fact)
