"""Shannon's routes, under `/shannon`: submit and get, and the roof over those of its other rooms."""

from contextlib import ExitStack

import msgspec
import structlog
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from app.agents.catalogue import Catalogue
from app.conversation import earlier_tasks
from app.decide import Rejected
from app.dialects import (
    shannon_about,
    shannon_controls,
    shannon_review,
    shannon_session_routes,
    shannon_stream_routes,
    shannon_ws,
)
from app.dialects.asked import Asked, cause_of
from app.dialects.budgets import shannon_refusal
from app.dialects.pace import retry_after
from app.dialects.polling import Poll, find, marks, polled
from app.dialects.shannon import (
    RETRY_AFTER_S,
    Streamable,
    Submitted,
    TaskBody,
    identified,
    refusal_of,
    render,
    render_submitted,
    stream_url,
)
from app.dialects.shannon_asked import LIMITED, checked_id, keyed, replayed
from app.dialects.shannon_attachments import check_size, max_bytes, taken
from app.dialects.shannon_lists import list_tasks
from app.dialects.shannon_submission import Submission, read_submission, to_command
from app.dialects.shannon_tracing import PREFIX, is_shannons
from app.limits import RateLimited
from app.problems import Refused
from app.settings import HttpSettings
from app.tasks import Tasks
from app.uploads import ASIDE, bounded, over
from app.views import Lists
from projections.task import Task

log = structlog.stdlib.get_logger()

STREAMS = f"{PREFIX}/api/v1/stream/"
"""Where a token may come in the query."""

TaskPath = FromPath[str]


@post(
    "/api/v1/tasks", status_code=200, opt=LIMITED | {"asks": Submission, "tells": Submitted}, request_max_body_size=None
)
async def submit(
    request: Asked,
    tasks: NamedDependency[Tasks],
    lists: NamedDependency[Lists],
    catalogue: NamedDependency[Catalogue],
    http: NamedDependency[HttpSettings],
) -> Response[bytes]:
    """Begin a task."""
    task, headers = await _begin(request, tasks, lists, catalogue, http)
    return Response(render_submitted(task), headers=headers, media_type="application/json")


@post(
    "/api/v1/tasks/stream",
    status_code=201,
    opt=LIMITED | {"asks": Submission, "tells": Streamable},
    request_max_body_size=None,
)
async def submit_and_stream(
    request: Asked,
    tasks: NamedDependency[Tasks],
    lists: NamedDependency[Lists],
    catalogue: NamedDependency[Catalogue],
    http: NamedDependency[HttpSettings],
) -> Response[bytes]:
    """Begin a task, and say where it can be followed."""
    task, headers = await _begin(request, tasks, lists, catalogue, http)
    url = stream_url(task.task_id)
    body = msgspec.json.encode(Streamable(workflow_id=task.task_id, task_id=task.task_id, stream_url=url))
    headers["Link"] = f"<{url}>; rel=stream"
    return Response(body, status_code=201, headers=headers, media_type="application/json")


@get("/api/v1/tasks/{task_id:str}", opt={"tells": TaskBody})
async def get_task(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """One task. `If-None-Match` with its ETag gives 304; `Retry-After` is how long a kind poller waits."""
    request.user.need("tasks:read")
    found = await find(tasks, request.user, checked_id(task_id))
    return await polled(request, tasks, found, POLL)


def _marks(task: Task) -> dict[str, str]:
    return marks(task) | {"X-Workflow-ID": str(task.task_id)} | retry_after(task, least_s=RETRY_AFTER_S)


POLL = Poll(
    dialect="shannon",
    scope="tasks:read",
    budget=None,
    paths=(f"{PREFIX}/api/v1/tasks",),
    render=render,
    headers=_marks,
)


@get("/openapi.json", opt=shannon_about.OPEN)
async def openapi() -> Response[bytes]:
    """This description."""
    return Response(shannon_about.description(HANDLERS), media_type="application/json")


HANDLERS: list[ControllerRouterHandler] = [
    *(submit, submit_and_stream, list_tasks, get_task),
    *shannon_controls.HANDLERS,
    *shannon_review.HANDLERS,
    *(shannon_about.health, shannon_about.readiness, openapi),
    *shannon_stream_routes.HANDLERS,
    *shannon_session_routes.HANDLERS,
    *shannon_ws.HANDLERS,
]
"""All of Shannon's routes. Its other rooms' handlers are added here."""


def routes() -> list[Router]:
    """All of them. They are no part of our own API's description: `/shannon/openapi.json` describes them."""
    return [Router(path=PREFIX, route_handlers=HANDLERS, include_in_schema=False)]


def answers_for(path: str) -> bool:
    """Whether whoever asks for this path, also where nothing is, expects Shannon's words."""
    return is_shannons(path)


def on_error(request: Request[object, object, State], error: Exception) -> Response[bytes]:
    """Every error on Shannon's paths in its shape; one that nobody expected is ours, and is logged."""
    status_code, refusal, headers = refusal_of(error)
    if status_code == 500:
        log.error("http.fault", path=request.scope["path"], exc_info=error)
    body = shannon_refusal(error) if isinstance(error, RateLimited) else msgspec.json.encode(refusal) + b"\n"
    return Response(body, status_code=status_code, headers=headers, media_type="application/json")


async def _begin(
    request: Asked, tasks: Tasks, lists: Lists, catalogue: Catalogue, http: HttpSettings
) -> tuple[Task, dict[str, str]]:
    """The new task, or the one that this idempotency key stands for. Raises BadRequest, NotAllowed, Refused ..."""
    request.user.need("tasks:write")
    owner = request.user.owner
    content = await bounded(request.stream(), max_bytes(http))
    check_size(content, http)
    body = read_submission(content)
    with ExitStack() as opened:
        body.context, uploads, attached = await taken(body.context or {}, opened, http)
        if len(content) - attached > http.max_body_bytes:
            raise over(http.max_body_bytes, ASIDE)
        command = to_command(body, content, catalogue)
        if body.session_id:
            earlier = await earlier_tasks(tasks, lists, owner, body.session_id)
            command = msgspec.structs.replace(command, earlier=earlier)
        key = keyed(request, content)
        done = await tasks.create(owner, command, cause_of(request), key=key, uploads=uploads)
    if isinstance(done, Rejected):
        raise Refused(done)
    return done.task, identified(done.task) | replayed(request, done.recorded is None)
