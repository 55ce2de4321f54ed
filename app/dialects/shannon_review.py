"""Shannon's review of a plan, under `/shannon`: what was said of it, one more word, or the approval."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler
from msgspec import Struct
from msgspec.structs import asdict, replace

from app.bounding import held_by
from app.bounds import NoRoom
from app.commands import ClientCommand, DecideReview, ReceiveInput
from app.decide import Rejected
from app.dialects.asked import Asked, cause_of
from app.dialects.polling import find, large_fields
from app.dialects.shannon import Refusal, query_of
from app.dialects.shannon_asked import LIMITED, answer, checked_id
from app.dialects.shannon_events import plan_text
from app.dialects.shannon_submission import read
from app.following import READING, history
from app.problems import BadRequest, Refused
from app.tasks import Tasks
from eventstore.events import InputReceived, PlanProposed, ReviewDecided
from eventstore.log import Recorded
from projections.task import Task

MAX_ROUNDS = 10
MAX_MESSAGE = 10 * 1024
"""Bytes of one message."""
MAX_BYTES = 4 * 1024 * 1024
"""And of all that was said, about."""

TaskPath = FromPath[str]


class Round(Struct, kw_only=True):
    """What one side said."""

    role: str
    message: str
    timestamp: datetime


class Review(Struct, kw_only=True):
    """A plan's review: `version` counts what was said, `round` what the reviewer may answer to."""

    status: str
    round: int
    version: int
    current_plan: str
    rounds: list[Round]
    query: str


class Reply(Struct, kw_only=True):
    """What the plan is after a word of the reviewer."""

    message: str
    round: int
    version: int
    intent: str = "feedback"


class Heard(Review, kw_only=True):
    """The vendor's server says it in `plan`, its SDK reads it above: both are there."""

    plan: Reply


class NewWord(Struct, kw_only=True):
    """What the reviewer says, or that it is approved."""

    action: str | None = None
    message: str | None = None


class Approved(Struct, kw_only=True):
    """The task goes on."""

    status: str = "approved"
    message: str = "Research started"


@get("/api/v1/tasks/{task_id:str}/review", opt={"tells": Review})
async def get_review(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """A plan's review, as long as it is not refused."""
    request.user.need("tasks:read")
    _, review = await _found(request, tasks, task_id)
    return answer(review, headers={"ETag": str(review.version)})


@post("/api/v1/tasks/{task_id:str}/review", status_code=200, opt=LIMITED | {"asks": NewWord, "tells": Heard})
async def say(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """One more word on the plan, which the agent finds in its inbox, or its approval. `If-Match`: only if nothing else
    was said."""
    request.user.need("tasks:write")
    body = read(await request.body(), NewWord)
    message = (body.message or "").strip()
    if len(message.encode()) > MAX_MESSAGE:
        raise BadRequest(f"message has at most {MAX_MESSAGE} bytes")
    task, review = await _found(request, tasks, task_id)
    known = request.headers.get("if-match", "").strip().removeprefix("W/").strip('"')
    if known and known not in ("*", str(review.version)):
        raise Refusal(409, f"Version conflict: the review is at version {review.version}")
    match body.action:
        case "approve":
            if review.status != "approved":
                command = DecideReview(approved=True, feedback=message or None, step=task.plan_step)
                await _command(request, tasks, task, command)
            return answer(Approved(), headers={"ETag": str(review.version)})
        case "feedback":
            if not message:
                raise BadRequest("message is required")
            if review.status == "approved":
                raise Refusal(409, "Review is already approved")
            if review.round >= MAX_ROUNDS:
                raise Refusal(409, f"Maximum number of review rounds reached ({MAX_ROUNDS})")
            await _command(request, tasks, task, ReceiveInput(text=message))
            return await _heard(request, tasks, task)
        case _:
            raise BadRequest("Invalid action (allowed: feedback, approve)")


HANDLERS: list[ControllerRouterHandler] = [get_review, say]


async def rounds_of(task: Task, history: AsyncGenerator[Recorded]) -> list[Round]:
    """What was said of the task's plans up to the decision on the last. Raises Refusal where that is too much."""
    rounds: list[Round] = []
    room = MAX_BYTES
    async with aclosing(history):
        async for recorded in history:
            if recorded.sequence > task.sequence:
                break  # the log may have more by now, which this task does not know
            at = recorded.record.at
            match recorded.record.fact:
                case PlanProposed(needs_approval=True, plan=plan):
                    rounds.append(Round(role="assistant", message=plan_text(plan), timestamp=at))
                case InputReceived(step=None, text=text) if rounds:
                    rounds.append(Round(role="user", message=text, timestamp=at))
                case ReviewDecided(step=step) if step == task.plan_step:
                    break
                case _:
                    continue
            room -= len(recorded.stored)
            if room < 0:
                raise Refusal(413, "Too much was said: the task's events tell it in pages")
    return rounds


def review_of(task: Task, rounds: list[Round], query: str) -> Review | None:
    """The review of the task's last plan that waits, or waited, for approval; None: there is none (any more)."""
    if not rounds:
        return None
    return Review(
        status="approved" if task.plan_approved else "reviewing",
        round=1 + sum(one.role == "user" for one in rounds),
        version=len(rounds),
        current_plan=plan_text(task.plan),
        rounds=rounds,
        query=query,
    )


async def _found(request: Asked, tasks: Tasks, text: str) -> tuple[Task, Review]:
    """Raises BadRequest, NotFound, Refusal."""
    attached, _ = await find(tasks, request.user, checked_id(text))
    task = attached.task
    review = None
    if task.plan_awaits_review or task.plan_approved:
        held = held_by(request.scope)
        held.keep(0)  # of an earlier look
        await held.more(READING + 2 * MAX_BYTES)
        rounds = await rounds_of(task, history(tasks.log, attached))
        review = review_of(task, rounds, query_of(task, await large_fields(held, tasks, task)))
    if review is None:
        raise Refusal(404, "Review session not found or expired")
    return task, review


async def _heard(request: Asked, tasks: Tasks, task: Task) -> Response[bytes]:
    """The review after the reviewer's word."""
    try:
        _, now = await _found(request, tasks, task.task_id)
    except NoRoom as error:
        raise NoRoom(task.task_id) from error
    reply = Reply(message=now.current_plan, round=now.round, version=now.version)
    return answer(Heard(**asdict(now), plan=reply), headers={"ETag": str(now.version)})


async def _command(request: Asked, tasks: Tasks, task: Task, command: ClientCommand) -> None:
    """Have it happen to just what was looked at. Raises Refusal, Refused."""
    if request.headers.get("if-match"):
        command = replace(command, at_version=task.version)
    done = await tasks.execute(request.user.owner, task.task_id, command, cause_of(request))
    if isinstance(done, Rejected):
        if done.reason in ("moved_on", "not_waiting", "ended"):
            raise Refusal(409, f"Review has moved on: {done.detail}")
        raise Refused(done)
