"""Shannon's events: what each fact of ours is in Shannon's words. Pure.

Streams, `/events` and a session's turns all render by `events_of`. One fact is one event, and an ending is several: so
an event's `seq` is its fact's version (an ending's later events go on from there), dense from 1, known without
counting.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from app.dialects.shannon_frames import Event, RawType
from eventstore.cursor import event_id
from eventstore.events import (
    BlobReference,
    Ending,
    InputReceived,
    InputRequested,
    Json,
    PartialProduced,
    PauseRequested,
    PlannedStep,
    PlanProposed,
    Record,
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
    Usage,
)
from eventstore.log import Recorded
from projections.task import Task

MAX_MESSAGE = 2_000
"""Characters of a message that repeats what the payload holds whole."""

Said = tuple[RawType, str, dict[str, Json]]
"""An event's type, message and payload."""


def events_of(recorded: Recorded, task: Task) -> list[Event]:
    """The events of one fact, in order. `task` is its task, then or later: what is read of it does not change, or not
    after its end. Where large fields went to a blob, the payload's `blob` names it."""
    return events_by(recorded, task.agent, task.usage)


def events_by(recorded: Recorded, agent: str, usage: Usage | None) -> list[Event]:
    """The same, by what is read of the task: its agent, and, at the end only, what it used."""
    record = recorded.record
    said = _said(recorded, usage)
    if record.blob is not None:
        said = [_elsewhere(one, f"{recorded.task_id}:{record.blob.sha256}", record.blob) for one in said]
    return [
        Event(
            workflow_id=recorded.task_id,
            type=kind,
            agent_id=agent,
            message=message,
            payload=payload,
            timestamp=record.at,
            seq=record.version + index,
            stream_id=event_id(recorded, index),
        )
        for index, (kind, message, payload) in enumerate(said)
    ]


def _elsewhere(said: Said, key: str, blob: BlobReference) -> Said:
    """Where fields of its fact were too large for the log: the payload says which and where, and a message that one of
    them would have been says so, too. A client that shows it shows no empty answer."""
    kind, message, payload = said
    if kind == "STREAM_END":
        return said
    payload = {name: value for name, value in payload.items() if name not in blob.fields}
    payload["blob"] = {"key": key, "fields": list(blob.fields), "bytes": blob.bytes}
    if kind == "LLM_OUTPUT" and "result" in blob.fields:
        message = (
            f"(The result is too large for an event, {blob.bytes} bytes: GET /api/v1/blob/{key} or the task itself.)"
        )
    elif kind == "TOOL_OBSERVATION" and "output" in blob.fields:
        message = f"(The output is too large for an event, {blob.bytes} bytes: GET /api/v1/blob/{key})"
    return kind, message, payload


def approval_id(step: int) -> str:
    """What a decision names: the review or plan of this step. `APPROVAL_REQUESTED` and `RESEARCH_PLAN_READY` say it."""
    return f"approval-{step}"


def approved_step(text: str) -> int | None:
    """The step of an `approval_id`; None: it is none."""
    number = text.removeprefix("approval-")
    return int(number) if text != number and number.isascii() and number.isdigit() and len(number) < 10 else None


def plan_text(plan: Sequence[PlannedStep]) -> str:
    """A plan as people read it."""
    return "\n".join(f"{n}. {step.tool}" + f": {step.why}" * bool(step.why) for n, step in enumerate(plan, 1))


def _said(recorded: Recorded, usage: Usage | None) -> list[Said]:
    """Exactly one, but for an ending: `seq` counts on it."""
    fact, version = recorded.record.fact, recorded.record.version
    match fact:
        case TaskCreated(metadata=metadata):
            context = metadata.get("context", metadata)
            return [("WORKFLOW_STARTED", "Task submitted", {"task_context": context} if context else {})]
        case TaskQueued(limit=limit):
            return [("WAITING", "Waiting for a free slot", {"limit": limit})]
        case TaskStarted(run=run, lost=lost):
            message = f"Run {run} started" + (": the run before was lost" if lost else "")
            return [("AGENT_STARTED", message, {"run": run, "lost": lost})]
        case StepStarted(name=name, step=step, input=asked):
            params: dict[str, Json] = {"tool": name, "params": asked}
            return [("TOOL_INVOKED", _parsable(params, name), params | {"step": step})]
        case ToolUsed(tool=tool):
            return [_observed(fact, tool)]
        case StepFinished(kind="tool" | "effect", name=name):
            return [_observed(fact, name)]
        case StepFinished():
            return [_step_done(fact)]
        case PartialProduced(text=text, run=run, step=step, offset=offset):
            return [("LLM_PARTIAL", text, {"run": run, "step": step, "offset": offset})]
        case PlanProposed():
            return [_planned(fact)]
        case InputRequested(question=question, step=step):
            return [("WAITING", question, {"question": question, "step": step})]
        case InputReceived(text=text, step=None):
            return [("MESSAGE_RECEIVED", text, {})]
        case InputReceived(text=text, step=step):
            return [("HITL_RESPONSE", text, {"step": step})]
        case ReviewRequested(subject=subject, step=step):
            asked_for: dict[str, Json] = {"approval_id": approval_id(step), "subject": subject}
            return [("APPROVAL_REQUESTED", _parsable(asked_for, subject), asked_for | {"step": step})]
        case ReviewDecided():
            return [_decided(fact)]
        case PauseRequested(reason=reason):
            return [("WORKFLOW_PAUSING", reason or "Pausing after the step in hand", {})]
        case TaskPaused(reason=reason):
            return [("WORKFLOW_PAUSED", reason or "Workflow paused", {"checkpoint": f"version-{version}"})]
        case TaskResumed():
            return [("WORKFLOW_RESUMED", "Workflow resumed", {})]
        case RunFailed(run=run, error=error, counts=counts):
            if not counts:
                return [("PROGRESS", f"Run {run} was given back", {"run": run})]
            return [("ERROR_RECOVERY", error.message or error.code, {"run": run, "code": error.code})]
        case TaskCompleted() | TaskFailed() | TaskCancelled() | TaskTimedOut():
            return [*_ended(fact, recorded.record, usage), ("STREAM_END", "Done", {})]
        case UnknownFact(tag=tag):
            return [("STATUS_UPDATE", tag, {})]
        case _:
            assert_never(fact)


def _ended(fact: Ending, record: Record, usage: Usage | None) -> list[Said]:
    match fact:
        case TaskCompleted(result=result):
            done: list[Said] = [("AGENT_COMPLETED", "Agent finished", {}), ("WORKFLOW_COMPLETED", "All done", {})]
            if result is None and record.blob is None:
                return done
            return [("LLM_OUTPUT", result or "", _cost(usage)), *done]
        case TaskFailed(code=code, message=message):
            failed: dict[str, Json] = {"code": code}
            text = message or code
        case TaskTimedOut(deadline=deadline):
            failed = {"code": "timeout", "deadline": deadline.isoformat()}
            text = "Not done by its deadline"
        case TaskCancelled(reason=reason, was_paused=was_paused):
            ended: dict[str, Json] = {"checkpoint": f"version-{record.version}", "was_paused": was_paused}
            return [
                ("WORKFLOW_CANCELLING", reason or "Cancelling workflow", {}),
                ("WORKFLOW_CANCELLED", reason or "Workflow cancelled", ended),
            ]
        case _:
            assert_never(fact)
    return [("ERROR_OCCURRED", text, failed), ("WORKFLOW_FAILED", text, failed)]


def _cost(usage: Usage | None) -> dict[str, Json]:
    if usage is None:
        return {}
    cost: dict[str, Json] = {
        "tokens_used": usage.input_tokens + usage.output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": usage.cost,
        "model_used": usage.model,
        "provider": usage.provider,
    }
    return {name: value for name, value in cost.items() if value is not None}


def _observed(fact: ToolUsed | StepFinished, tool: str) -> Said:
    payload: dict[str, Json] = {"tool": tool, "step": fact.step, "success": fact.error is None}
    payload["duration_ms"] = round(fact.took * 1000)
    if fact.error is not None:
        payload["error"] = {"code": fact.error.code, "message": fact.error.message}
        return "TOOL_OBSERVATION", fact.error.message or fact.error.code, payload
    payload["output"] = fact.output
    output = fact.output if isinstance(fact.output, str) else msgspec.json.encode(fact.output).decode()
    return "TOOL_OBSERVATION", output[:MAX_MESSAGE], payload


def _step_done(fact: StepFinished) -> Said:
    if fact.message:
        return "LLM_OUTPUT", fact.message, _cost(fact.usage)
    payload: dict[str, Json] = {"step": fact.step, "kind": fact.kind}
    return "PROGRESS", f"Step {fact.step} ({fact.kind}) is done", payload | _cost(fact.usage)


def _planned(fact: PlanProposed) -> Said:
    plan: list[Json] = [{"tool": step.tool, "why": step.why} for step in fact.plan]
    message = plan_text(fact.plan)
    payload: dict[str, Json] = {"plan": plan, "step": fact.step}
    if not fact.needs_approval:
        return "AGENT_THINKING", message, payload
    return "RESEARCH_PLAN_READY", message, payload | {"approval_id": approval_id(fact.step)}


def _decided(fact: ReviewDecided) -> Said:
    payload: dict[str, Json] = {"approval_id": approval_id(fact.step), "approved": fact.approved}
    message = fact.feedback or ("Approved" if fact.approved else "Refused")
    if not fact.of_plan:
        return "APPROVAL_DECISION", message, payload
    return "RESEARCH_PLAN_APPROVED" if fact.approved else "REVIEW_USER_FEEDBACK", message, payload


def _parsable(payload: dict[str, Json], text: str) -> str:
    """The payload in a message: the vendor's SDK reads it there, and keeps no payload."""
    encoded = msgspec.json.encode(payload).decode()
    return encoded if len(encoded) <= MAX_MESSAGE else text[:MAX_MESSAGE]
