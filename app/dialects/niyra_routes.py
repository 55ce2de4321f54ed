"""Niyra's routes, at its own paths and, whole, under `/niyra`."""

from time import monotonic
from uuid import uuid4

import msgspec
import structlog
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody

from app.agents.catalogue import Catalogue
from app.commands import DecideReview
from app.conversation import earlier_tasks
from app.decide import Rejected
from app.dialects.asked import Asked, cause_of, idempotency_key, known_versions
from app.dialects.niyra import (
    RETRY_AFTER_S,
    Answered,
    Executed,
    NewExecution,
    NewQuestion,
    Polled,
    Refusal,
    ToolDisabled,
    confirmed_id,
    refusal_of,
    render_answered,
    render_executed,
    render_polled,
    to_command,
)
from app.dialects.polling import find, rendered, wait_until
from app.problems import BadRequest, NotFound, Refused
from app.settings import HttpSettings
from app.tasks import Tasks
from app.views import Lists
from projections.task import Task

log = structlog.stdlib.get_logger()

PREFIX = "/niyra"
PATHS = ("/v1/public/", f"{PREFIX}/")

REFUSAL = ResponseSpec(Refusal, generate_examples=False)
COMMON = {400: REFUSAL, 401: REFUSAL, 403: REFUSAL, 404: REFUSAL, 429: REFUSAL, 503: REFUSAL}
BEGUN = {**COMMON, 413: REFUSAL, 422: REFUSAL}


@post(
    "/v1/public/execute",
    status_code=200,
    opt={"limit": "niyra.execute"},
    responses={**BEGUN, 200: ResponseSpec(Executed, generate_examples=False), 409: REFUSAL},
    tags=["niyra"],
)
async def execute(
    request: Asked,
    data: JSONBody[NewExecution],
    tasks: NamedDependency[Tasks],
    lists: NamedDependency[Lists],
    catalogue: NamedDependency[Catalogue],
    http: NamedDependency[HttpSettings],
) -> Response[bytes]:
    """Do something. Answers with the result, or, after the window, with the task to poll; `dry_run` and `confirm`
    answer with the plan. With `confirmed_task_id`, a plan that waits for it is carried out."""
    began = monotonic()
    request.user.need("niyra:execute")
    if data.confirmed_task_id is None:
        task, headers = await _begin(request, data, tasks, lists, catalogue)
    else:
        task, headers = await _confirm(request, data.confirmed_task_id, tasks), {}

    def answered(now: Task) -> bool:
        return now.ended or now.plan_awaits_review

    task = await wait_until(tasks, task, answered, http.niyra_execute_window_s - (monotonic() - began))
    large = await _large_of(tasks, task)
    return _answer(task, render_executed(task, large, _ms_since(began)), headers)


@post(
    "/v1/public/ask",
    status_code=200,
    opt={"limit": "niyra.ask"},
    responses={**BEGUN, 200: ResponseSpec(Answered, generate_examples=False)},
    tags=["niyra"],
)
async def ask(
    request: Asked,
    data: JSONBody[NewQuestion],
    tasks: NamedDependency[Tasks],
    lists: NamedDependency[Lists],
    catalogue: NamedDependency[Catalogue],
    http: NamedDependency[HttpSettings],
) -> Response[bytes]:
    """Ask something: only tools that change nothing are used. After the window, the task to poll."""
    began = monotonic()
    request.user.need("niyra:ask")
    task, headers = await _begin(request, data, tasks, lists, catalogue)
    window_s = http.niyra_ask_window_s - (monotonic() - began)
    task = await wait_until(tasks, task, lambda now: now.ended, window_s)
    large = await _large_of(tasks, task)
    return _answer(task, render_answered(task, large, _ms_since(began)), headers)


@get(
    "/v1/public/tasks/{task_id:str}",
    opt={"limit": "niyra.poll"},
    responses={**COMMON, 200: ResponseSpec(Polled, generate_examples=False), 304: ResponseSpec(None)},
    tags=["niyra"],
)
async def poll_task(request: Asked, task_id: FromPath[str], tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """One task. `If-None-Match` with its ETag gives 304; `Retry-After` is how long a kind poller waits."""
    request.user.need("niyra:tasks:read")
    attached, age_s = await find(tasks, request.user, task_id)
    task = attached.task
    headers = {"Cache-Control": "private, no-cache", "ETag": f'"{task.version}"'}
    if age_s is not None:
        headers["Age"] = str(age_s)
    if not task.ended:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if task.version in known_versions(request, task):
        return Response(b"", status_code=304, headers=headers, media_type=None)
    body = await rendered(tasks, attached, task, "niyra", render_polled)
    return Response(body, headers=headers, media_type="application/json")


def routes() -> list[Router]:
    """All of them, twice."""
    handlers = [execute, ask, poll_task]
    return [
        Router(path="/", route_handlers=handlers),
        Router(path=PREFIX, route_handlers=handlers, include_in_schema=False),
    ]


def answers_for(path: str) -> bool:
    """Whether whoever asks for this path, also where nothing is, expects Niyra's words."""
    return f"{path}/".startswith(PATHS)


def on_error(request: Request[object, object, State], error: Exception) -> Response[bytes]:
    """Every error on Niyra's paths in its envelope; one that nobody expected is ours, and is logged."""
    status_code, refusal, headers = refusal_of(error)
    if status_code == 500:
        log.error("http.fault", path=request.scope["path"], exc_info=error)
    body = msgspec.json.encode(refusal)
    return Response(body, status_code=status_code, headers=headers, media_type="application/json")


async def _begin(
    request: Asked, data: NewExecution | NewQuestion, tasks: Tasks, lists: Lists, catalogue: Catalogue
) -> tuple[Task, dict[str, str]]:
    """The new task, or the one that this idempotency key stands for. Raises BadRequest, NotAllowed, Refused ..."""
    owner = request.user.owner
    conversation_id = str(data.conversation_id or uuid4())
    command = to_command(data, agent=catalogue.default, conversation_id=conversation_id)
    if data.conversation_id is not None:
        request.user.need("niyra:followup")
        earlier = await earlier_tasks(tasks, lists, owner, conversation_id)
        command = msgspec.structs.replace(command, earlier=earlier)
    done = await tasks.create(owner, command, cause_of(request), key=idempotency_key(request))
    if isinstance(done, Rejected):
        raise Refused(done)
    return done.task, {"Idempotency-Replayed": "true"} if done.recorded is None else {}


async def _confirm(request: Asked, pending: str, tasks: Tasks) -> Task:
    """The task whose plan is approved now, or was before. Raises BadRequest, NotFound: there is no such task."""
    owner, task_id = request.user.owner, confirmed_id(pending)
    attached, _ = await tasks.get(owner, task_id)
    if attached is None:
        raise NotFound("no such task")
    task = attached.task
    if task.plan_awaits_review:
        # By its step: not a later plan, which its owner has not seen.
        approve = DecideReview(approved=True, step=task.plan_step)
        done = await tasks.execute(owner, task_id, approve, cause_of(request))
        if not isinstance(done, Rejected):
            return done.task
        if done.reason not in ("ended", "not_waiting"):
            raise Refused(done)
        async with tasks.attach(owner, task_id) as again:  # somebody else was faster
            task = again.task
    if task.ended or task.plan_approved:
        return task
    raise BadRequest("confirmed_task_id: this task has no plan that could be confirmed")


async def _large_of(tasks: Tasks, task: Task) -> dict[str, object]:
    """Raises ToolDisabled: that is no answer, but a refusal."""
    if task.status == "failed" and task.error is not None and task.error.code == "tool_disabled":
        raise ToolDisabled(task)
    return await tasks.large_fields(task) if task.blobs else {}


def _answer(task: Task, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    if not task.ended:
        headers = headers | {"Retry-After": str(RETRY_AFTER_S)}
    return Response(body, headers=headers, media_type="application/json")


def _ms_since(began: float) -> int:
    return round((monotonic() - began) * 1000)
