"""Shannon's controls of a task, under `/shannon`: cancel, pause, resume, decide, tell; and what became of that."""

from contextlib import aclosing
from datetime import UTC

import msgspec
from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from app.bounding import held_by
from app.commands import CancelTask, ClientCommand, DecideReview, ReceiveInput, RequestPause, ResumeTask
from app.decide import Rejected
from app.dialects.asked import Asked, cause_of
from app.dialects.native import task_id_of
from app.dialects.polling import find, task_id_asked
from app.dialects.shannon import Refusal
from app.dialects.shannon_asked import LIMITED, answer, checked_id, keyed, replayed
from app.dialects.shannon_events import approved_step
from app.dialects.shannon_submission import read
from app.following import READING, history
from app.keys import hashed_key
from app.problems import BadRequest, NotFound, Refused
from app.tasks import Done, Tasks
from app.uploads import over
from eventstore.events import ReviewDecided, TaskId
from projections.task import Halt, Task

MAX_REASON = 1_000
MAX_TOLD = 32 * 1024
MAX_TELLING = 64 * 1024
"""Bytes of a message to a task, and of the body that brings it."""
NOBODY = Halt(by="", reason=None, at=None)

TaskPath = FromPath[str]


class Reason(Struct, kw_only=True):
    """Why; it may be left out, and so may the body."""

    reason: str | None = None


class Accepted(Struct, kw_only=True, omit_defaults=True):
    """Whether it was, or will be, done."""

    success: bool
    message: str
    task_id: str | None = None


class ControlState(Struct, kw_only=True):
    """Whether it is paused or cancelled, since when, by whom, and why; every field is always there."""

    is_paused: bool
    is_cancelled: bool
    paused_at: str = ""
    pause_reason: str = ""
    paused_by: str = ""
    cancel_reason: str = ""
    cancelled_by: str = ""


class NewDecision(Struct, kw_only=True):
    """A person's decision on what awaits approval."""

    workflow_id: str | None = None
    approval_id: str | None = None
    approved: bool | None = None
    run_id: str | None = None
    feedback: str | None = None


class Decided(Struct, kw_only=True):
    """Whether it counts."""

    status: str = "sent"
    success: bool
    message: str
    workflow_id: str
    run_id: str
    approval_id: str


class NewMessage(Struct, kw_only=True):
    """What the task is told: the answer to its question, or something for its inbox."""

    message: str | None = None


class Told(Struct, kw_only=True):
    """It is in the log."""

    success: bool = True
    status: str = "sent"


@get("/api/v1/tasks/{task_id:str}/control-state", opt=LIMITED | {"tells": ControlState})
async def control_state(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Whether it is paused or cancelled."""
    request.user.need("tasks:read")
    attached, _ = await find(tasks, request.user, checked_id(task_id))
    return answer(state_of(attached.task))


@post("/api/v1/tasks/{task_id:str}/cancel", status_code=202, opt=LIMITED | {"asks": Reason, "tells": Accepted})
async def cancel(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """End it, at once. What has ended otherwise is no longer to be cancelled, which is an answer, and no error."""
    command = CancelTask(by=request.user.actor, reason=await _reason(request))
    done, headers = await _command(request, tasks, task_id_asked(task_id), command)
    if isinstance(done, Rejected):
        return answer(Accepted(success=False, message=f"Failed to cancel task: {done.detail}"), 202)
    return answer(Accepted(success=True, message="Task cancelled successfully"), 202, headers)


@post("/api/v1/tasks/{task_id:str}/pause", status_code=202, opt=LIMITED | {"asks": Reason, "tells": Accepted})
async def pause(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Pause it when its step in hand has ended."""
    asked = task_id_asked(task_id)
    done, headers = await _command(request, tasks, asked, RequestPause(reason=await _reason(request)))
    if isinstance(done, Rejected):
        raise Refusal(502, f"cannot pause {await _ended(request, tasks, asked)} task")
    if done.recorded is None and done.task.status == "paused" and not headers:
        raise Refusal(502, "task is already paused")
    return answer(Accepted(success=True, message="Pause signal sent", task_id=asked), 202, headers)


@post("/api/v1/tasks/{task_id:str}/resume", status_code=202, opt=LIMITED | {"asks": Reason, "tells": Accepted})
async def resume(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Go on with it."""
    asked = task_id_asked(task_id)
    await _reason(request)  # taken, and kept nowhere
    done, headers = await _command(request, tasks, asked, ResumeTask())
    if isinstance(done, Rejected):
        raise Refusal(502, f"cannot resume {await _ended(request, tasks, asked)} task")
    if done.recorded is None and not headers:
        raise Refusal(502, "task is not paused")
    return answer(Accepted(success=True, message="Resume signal sent", task_id=asked), 202, headers)


@post("/api/v1/approvals/decision", status_code=200, opt=LIMITED | {"asks": NewDecision, "tells": Decided})
async def decide(request: Asked, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Approve, or do not, what awaits it: an agent's question for approval, or a plan."""
    body = read(await request.body(), NewDecision)
    if not body.workflow_id or not body.approval_id:
        raise BadRequest("workflow_id and approval_id are required")
    task_id, step = task_id_of(body.workflow_id), approved_step(body.approval_id)
    missing = Refusal(404, "Workflow or approval not found")
    if task_id is None or step is None:
        raise missing
    approved = body.approved or False
    command = DecideReview(approved=approved, feedback=body.feedback or None, step=step)
    try:
        done, headers = await _command(request, tasks, task_id, command)
    except NotFound as error:
        raise missing from error
    success, message = True, "Approval decision sent"
    if body.approved is None:
        message = "Refusal sent: `approved` is missing, which means no"
    if isinstance(done, Rejected):
        before = await _decided(request, tasks, task_id, step)
        if before is None:
            raise missing
        success, message = before == approved, f"It was {'approved' if before else 'refused'} before"
    decided = Decided(
        success=success,
        message=message,
        workflow_id=task_id,
        run_id=body.run_id or "",
        approval_id=body.approval_id,
    )
    return answer(decided, headers=headers)


@post("/api/v1/swarm/{task_id:str}/message", status_code=200, opt=LIMITED | {"asks": NewMessage, "tells": Told})
async def tell(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Answer what the task asks; if it asks nothing, leave a message in its inbox."""
    content = await request.body()
    if len(content) > MAX_TELLING:
        raise BadRequest(f"Invalid request body: {over(MAX_TELLING)}")
    text = read(content, NewMessage).message or ""
    if not text.strip():
        raise BadRequest("message is required")
    if len(text.encode()) > MAX_TOLD:
        raise BadRequest(f"message has at most {MAX_TOLD} bytes")
    asked = task_id_of(task_id)
    if asked is None:
        raise Refusal(404, "Workflow not found")
    try:
        done, _ = await _command(request, tasks, asked, ReceiveInput(text=text))
    except NotFound as error:
        raise Refusal(404, "Workflow not found") from error
    if isinstance(done, Rejected):
        raise BadRequest(f"Workflow has ended: {done.detail}")
    return answer(Told())


HANDLERS: list[ControllerRouterHandler] = [control_state, cancel, pause, resume, decide, tell]


def state_of(task: Task) -> ControlState:
    """Nothing is told of a pause that is over, or not there yet."""
    halt = task.halt or NOBODY
    reason = halt.reason or ""
    match task.status:
        case "paused":
            at = "" if halt.at is None else halt.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return ControlState(
                is_paused=True, is_cancelled=False, paused_at=at, pause_reason=reason, paused_by=halt.by
            )
        case "cancelled":
            return ControlState(is_paused=False, is_cancelled=True, cancel_reason=reason, cancelled_by=halt.by)
        case _:
            return ControlState(is_paused=False, is_cancelled=False)


async def _command(
    request: Asked, tasks: Tasks, task_id: TaskId, command: ClientCommand
) -> tuple[Done | Rejected, dict[str, str]]:
    """What came of it; Rejected only where that is not this task's time (any more). The headers are those of a repeat.
    Raises NotFound, Refused."""
    request.user.need("tasks:write")
    key = keyed(request, await request.body())
    if key is not None:
        command = msgspec.structs.replace(command, key=hashed_key(type(command).__name__, key))
    done = await tasks.execute(request.user.owner, task_id, command, cause_of(request))
    if isinstance(done, Rejected):
        if done.reason == "not_found":
            raise NotFound("no such task")
        if done.reason not in ("ended", "not_waiting"):
            raise Refused(done)
        return done, {}
    again = done.recorded is None and command.key is not None and command.key in done.task.keys
    return done, replayed(request, again)


async def _reason(request: Asked) -> str | None:
    """A body that says nothing of the kind is passed over. Raises BadRequest."""
    try:
        reason = read(await request.body(), Reason).reason
    except BadRequest:
        return None
    if reason is not None and len(reason) > MAX_REASON:
        raise BadRequest(f"reason has at most {MAX_REASON} characters")
    return reason or None


async def _ended(request: Asked, tasks: Tasks, task_id: TaskId) -> str:
    """How it ended."""
    async with tasks.attach(request.user.owner, task_id) as attached:
        return attached.task.status.replace("_", " ")


async def _decided(request: Asked, tasks: Tasks, task_id: TaskId, step: int) -> bool | None:
    """Whether this step was approved; None: nothing was decided there."""
    attached, _ = await find(tasks, request.user, task_id)
    task = attached.task
    if step >= task.steps:
        return None  # no such step is answered yet
    if step == task.plan_step and task.plan_approved:
        return True
    await held_by(request.scope).more(READING)
    async with aclosing(history(tasks.log, attached)) as records:
        async for recorded in records:
            fact = recorded.record.fact
            if isinstance(fact, ReviewDecided) and fact.step == step:
                return fact.approved
    return None
