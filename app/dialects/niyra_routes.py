"""Niyra's routes, at its own paths and, whole, under `/niyra`."""

import msgspec
import structlog
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody

from app.bounding import held_by
from app.dialects.asked import Asked, cause_of, idempotency_key
from app.dialects.niyra import (
    RETRY_AFTER_S,
    Answered,
    Executed,
    NewExecution,
    NewQuestion,
    Polled,
    Refusal,
    refusal_of,
    render_polled,
)
from app.dialects.niyra_calls import Caller, Calls, Told
from app.dialects.pace import retry_after
from app.dialects.polling import Poll, find, marks, polled
from app.tasks import Tasks
from projections.task import Task

log = structlog.stdlib.get_logger()

PREFIX = "/niyra"
PATHS = ("/v1/public/", f"{PREFIX}/", "/mcp/")

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
    calls: NamedDependency[Calls],
) -> Response[bytes]:
    """Do something. Answers with the result, or, after the window, with the task to poll; `dry_run` and `confirm`
    answer with the plan. With `confirmed_task_id`, a plan that waits for it is carried out."""
    return _answer(await calls.execute(_caller(request), data))


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
    calls: NamedDependency[Calls],
) -> Response[bytes]:
    """Ask something: only tools that change nothing are used. After the window, the task to poll."""
    return _answer(await calls.ask(_caller(request), data))


@get(
    "/v1/public/tasks/{task_id:str}",
    opt={"limit": "niyra.poll"},
    responses={**COMMON, 200: ResponseSpec(Polled, generate_examples=False), 304: ResponseSpec(None)},
    tags=["niyra"],
)
async def poll_task(request: Asked, task_id: FromPath[str], tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """One task. `If-None-Match` with its ETag gives 304; `Retry-After` is how long a kind poller waits."""
    request.user.need("niyra:tasks:read")
    found = await find(tasks, request.user, task_id)
    return await polled(request, tasks, found, POLL)


def _marks(task: Task) -> dict[str, str]:
    return marks(task) | _pace(task)


POLL = Poll(
    dialect="niyra",
    scope="niyra:tasks:read",
    budget="niyra.poll",
    paths=("/v1/public/tasks", f"{PREFIX}/v1/public/tasks"),
    render=render_polled,
    headers=_marks,
)


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


def _caller(request: Asked) -> Caller:
    """Raises BadRequest."""
    return Caller(
        principal=request.user,
        cause=cause_of(request),
        held=held_by(request.scope),
        key=idempotency_key(request),
    )


def _answer(told: Told) -> Response[bytes]:
    headers = {"Idempotency-Replayed": "true"} if told.replayed else {}
    return Response(told.body, headers=headers | _pace(told.task), media_type="application/json")


def _pace(task: Task) -> dict[str, str]:
    return retry_after(task, least_s=RETRY_AFTER_S)
