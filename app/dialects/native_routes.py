"""Our own API's routes."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Operation, RequestBody
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ASGIApp

from app.agents.catalogue import Catalogue
from app.attached import Attached
from app.auth import Revocations
from app.bounding import held_by
from app.bounds import NoRoom
from app.commands import CancelTask, Command, CreateTask, DecideReview, ReceiveInput, RequestPause, ResumeTask
from app.decide import Rejected
from app.dialects import native_admin
from app.dialects.asked import Asked, cause_of, idempotency_key, keyed, known_versions, strictly, wait_of
from app.dialects.native import (
    MAX_METADATA,
    AgentBody,
    AgentList,
    EventPage,
    NewMessage,
    NewReview,
    NewTask,
    TaskBody,
    Why,
    is_too_deep,
    render,
    to_command,
)
from app.dialects.native_audit import AFTER, get_log
from app.dialects.native_blobs import get_blob, get_record_blob
from app.dialects.native_checkpoints import sign_checkpoint
from app.dialects.native_lists import list_tasks, options
from app.dialects.native_past import AT, past_task
from app.dialects.native_schemas import get_asyncapi, get_facts_schema
from app.dialects.pace import retry_after
from app.dialects.polling import Poll, find, rendered, task_id_asked, wait_until
from app.feed import OurWords, TaskStream
from app.following import PAGE_BYTES, READING
from app.openapi import PROBLEM
from app.problems import BadRequest, Refused
from app.streams import Streams
from app.tasks import Tasks
from eventstore.codec import MAX_DEPTH
from eventstore.cursor import BEGINNING, Cursor, cursor_of, event_id
from eventstore.log import LogUnavailable, Recorded
from projections.task import Task

ASKING = frozenset({"waiting_for_input", "awaiting_review", "paused"})
"""Where waiting longer for the end is pointless until somebody does something."""

TASK = ResponseSpec(TaskBody, generate_examples=False, description="the task")
COMMON = {400: PROBLEM, 401: PROBLEM, 403: PROBLEM, 429: PROBLEM, 503: PROBLEM}
ONE_TASK = {**COMMON, 404: PROBLEM}
COMMANDED = {**ONE_TASK, 200: TASK, 409: PROBLEM, 413: PROBLEM, 415: PROBLEM, 422: PROBLEM}

TaskPath = FromPath[str]


@dataclass
class MayHaveBody(Operation):
    """An operation whose body may be left out (the framework says of all of them that they must be there)."""

    def __post_init__(self) -> None:
        if isinstance(self.request_body, RequestBody):
            self.request_body.required = False


@post("/tasks", status_code=201, responses={**COMMON, 200: TASK, 201: TASK, 413: PROBLEM, 422: PROBLEM}, tags=["tasks"])
async def create_task(
    request: Asked, data: JSONBody[NewTask], tasks: NamedDependency[Tasks], catalogue: NamedDependency[Catalogue]
) -> Response[bytes]:
    """Begin a task. `Prefer: wait=N` waits up to N (60 at most) seconds for its end; `Idempotency-Key` makes a repeat
    give the same task (200, `Idempotency-Replayed: true`); the same key with another request is refused (422)."""
    request.user.need("tasks:write")
    command = wish_of(await strictly(request, data), catalogue)
    done = await tasks.create(request.user.owner, command, cause_of(request), key=idempotency_key(request))
    if isinstance(done, Rejected):
        raise Refused(done)
    task = done.task
    root_path = str(request.scope["root_path"]).rstrip("/")
    headers = {"Location": f"{root_path}/tasks/{task.task_id}"}
    if done.recorded is None:
        headers["Idempotency-Replayed"] = "true"
    wait_s = wait_of(request)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        task = await _wait(tasks, task, wait_s, version=None)
    return await _answer(request, tasks, task, headers, status_code=200 if done.recorded is None else 201)


def wish_of(data: NewTask, catalogue: Catalogue) -> CreateTask:
    """What is asked for. Raises BadRequest."""
    command = to_command(data, default_agent=catalogue.default)
    if command.agent not in catalogue:
        raise BadRequest(f"no agent {command.agent!r}; there are: {', '.join(catalogue.names)}")
    if data.metadata and len(msgspec.json.encode(data.metadata)) > MAX_METADATA:
        raise BadRequest(f"metadata has at most {MAX_METADATA} bytes")
    if is_too_deep(data):
        raise BadRequest(f"input and metadata are nested {MAX_DEPTH} levels at most")
    return command


@get("/tasks/{task_id:str}", responses={**ONE_TASK, 200: TASK, 304: ResponseSpec(None)}, tags=["tasks"])
async def get_task(
    request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks], at: Annotated[str | None, AT] = None
) -> Response[bytes]:
    """One task. `If-None-Match` with its ETag gives 304; `Prefer: wait=N` waits up to N seconds for the next change;
    else `Retry-After` is how long a kind poller waits. With `at`, as it was then: that does not wait."""
    request.user.need("tasks:read")
    if at is not None:
        return await past_task(request, tasks, task_id_asked(task_id), at)
    attached, age_s = await find(tasks, request.user, task_id)
    known = known_versions(request, attached.task)
    if age_s is not None and "no-cache" in request.headers.get("cache-control", ""):
        raise LogUnavailable("the task can't be proven fresh")
    if any(version > attached.task.version for version in known):
        await tasks.tail.catch_up()
    task = attached.task
    headers = {"Cache-Control": "private, no-cache"}
    wait_s = wait_of(request)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s:g}"
        if not known or task.version in known:
            task = await _wait(tasks, task, wait_s, version=task.version)
    if age_s is not None:
        headers["Age"] = str(age_s)
    if task.version in known:
        return Response(b"", status_code=304, headers=marked(task, headers), media_type=None)
    return await _answer(request, tasks, task, headers, attached=attached)


@get(
    "/tasks/{task_id:str}/events",
    responses={**ONE_TASK, 200: ResponseSpec(EventPage, generate_examples=False), 204: ResponseSpec(None)},
    tags=["tasks"],
)
async def get_events(
    request: Asked,
    task_id: TaskPath,
    tasks: NamedDependency[Tasks],
    streams: NamedDependency[Streams],
    revocations: NamedDependency[Revocations],
    after: Annotated[str | None, AFTER] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    token: Annotated[str | None, QueryParameter(description="on streams, instead of a header")] = None,
) -> ASGIApp:
    """The task's history: a stream by `Accept: text/event-stream` (resumes by `Last-Event-ID`, which beats `after`;
    204 at or after the end), else a JSON page."""
    del token  # read where the request is authenticated
    request.user.need("tasks:read")
    attached, _ = await find(tasks, request.user, task_id)
    if "text/event-stream" not in request.headers.get("accept", ""):
        cursor = BEGINNING if after is None else cursor_of(after)
        await held_by(request.scope).more(READING)
        return await _page(tasks, attached.task, cursor, limit)  # pyright: ignore[reportReturnType]  # litestar takes both
    resumed = request.headers.get("last-event-id") or after
    cursor = BEGINNING if resumed is None else cursor_of(resumed)
    if _at_the_end(attached.task, cursor):
        return Response(b"", status_code=204, media_type=None)  # pyright: ignore[reportReturnType]  # litestar takes both
    return TaskStream(tasks, streams, revocations, request.user, attached.task_id, OurWords(cursor))


@post("/tasks/{task_id:str}/cancel", status_code=200, responses=COMMANDED, tags=["tasks"], operation_class=MayHaveBody)
async def cancel_task(
    request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks], data: JSONBody[Why | None] = None
) -> Response[bytes]:
    """End the task as cancelled, at once. The step in hand ends by itself; its result is refused."""
    reason = (await strictly(request, data)).reason if data else None
    return await _command(request, tasks, task_id, CancelTask(by=request.user.actor, reason=reason))


@post("/tasks/{task_id:str}/pause", status_code=200, responses=COMMANDED, tags=["tasks"], operation_class=MayHaveBody)
async def pause_task(
    request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks], data: JSONBody[Why | None] = None
) -> Response[bytes]:
    """Pause the task when its step in hand has ended; at once where nobody runs it."""
    reason = (await strictly(request, data)).reason if data else None
    return await _command(request, tasks, task_id, RequestPause(reason=reason))


@post("/tasks/{task_id:str}/resume", status_code=200, responses=COMMANDED, tags=["tasks"])
async def resume_task(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Go on with a paused task."""
    return await _command(request, tasks, task_id, ResumeTask())


@post("/tasks/{task_id:str}/messages", status_code=200, responses=COMMANDED, tags=["tasks"])
async def send_message(
    request: Asked, task_id: TaskPath, data: JSONBody[NewMessage], tasks: NamedDependency[Tasks]
) -> Response[bytes]:
    """Answer the agent's question; without one, leave a message for its next look at its inbox."""
    data = await strictly(request, data)
    return await _command(request, tasks, task_id, ReceiveInput(text=data.text))


@post("/tasks/{task_id:str}/review", status_code=200, responses=COMMANDED, tags=["tasks"])
async def review_task(
    request: Asked, task_id: TaskPath, data: JSONBody[NewReview], tasks: NamedDependency[Tasks]
) -> Response[bytes]:
    """Approve, or do not, what awaits review."""
    data = await strictly(request, data)
    return await _command(request, tasks, task_id, DecideReview(approved=data.approved, feedback=data.feedback))


@get("/agents", responses={**COMMON, 200: ResponseSpec(AgentList, generate_examples=False)}, tags=["agents"])
async def list_agents(request: Asked, catalogue: NamedDependency[Catalogue]) -> AgentList:
    """The agents that can be asked for."""
    request.user.need("tasks:read")
    agents = [AgentBody(name=one.name, description=one.description, limit=one.limit) for one in catalogue]
    return AgentList(data=agents)


def _plain(task: Task) -> dict[str, str]:
    return marked(task, {"Cache-Control": "private, no-cache"})


POLL = Poll(
    dialect="native",
    scope="tasks:read",
    budget="native",
    paths=("/tasks",),
    render=render,
    headers=_plain,
)


def routes() -> Router:
    """All of them."""
    handlers = [options("/tasks", "GET, OPTIONS, POST"), create_task, list_tasks, get_task, get_events, get_blob]
    handlers += [cancel_task, pause_task]
    handlers += [resume_task, send_message, review_task, list_agents, get_log, get_record_blob, sign_checkpoint]
    handlers += [get_asyncapi, get_facts_schema, *native_admin.HANDLERS]
    return Router(path="/", route_handlers=handlers, opt={"limit": "native"})


def _at_the_end(task: Task, cursor: Cursor) -> bool:
    if not task.ended or cursor.sequence < task.sequence:
        return False
    return cursor.check is None or (cursor.sequence == task.sequence and cursor.is_of(task.sha256))


async def _wait(tasks: Tasks, task: Task, wait_s: float, *, version: int | None) -> Task:
    """The task once its version is another (None: once it has ended or waits for somebody), or the time is over."""

    def satisfied(now: Task) -> bool:
        settled = now.status in ASKING if version is None else now.version != version
        return now.ended or settled

    return await wait_until(tasks, task, satisfied, wait_s)


async def _answer(
    request: Asked,
    tasks: Tasks,
    task: Task,
    headers: dict[str, str],
    *,
    status_code: int = 200,
    attached: Attached | None = None,
) -> Response[bytes]:
    try:
        body = await rendered(held_by(request.scope), tasks, attached, task, "native", render)
    except NoRoom as error:
        raise NoRoom(None if request.method == "GET" else task.task_id) from error
    return Response(body, status_code=status_code, headers=marked(task, headers), media_type="application/json")


def marked(task: Task, headers: dict[str, str]) -> dict[str, str]:
    """The headers of an answer that tells the task, with these."""
    # Who waits here need not wait elsewhere, too.
    pace = {} if "Preference-Applied" in headers else retry_after(task)
    return headers | pace | {"ETag": f'"{task.version}"'}


async def _command(request: Asked, tasks: Tasks, text: str, command: Command) -> Response[bytes]:
    request.user.need("tasks:write")
    task_id = task_id_asked(text)
    command = keyed(request, command)
    done = await tasks.execute(request.user.owner, task_id, command, cause_of(request))
    if isinstance(done, Rejected):
        raise Refused(done)
    headers = {"Idempotency-Replayed": "true"} if command.key and done.recorded is None else {}
    return await _answer(request, tasks, done.task, headers)


async def _page(tasks: Tasks, task: Task, cursor: Cursor, limit: int) -> Response[bytes]:
    records = await tasks.log.read(task.owner, task.task_id, after=cursor.sequence, limit=limit, max_bytes=PAGE_BYTES)
    last = records[-1].sequence if records else cursor.sequence
    more = b"true" if last < task.sequence else b"false"
    items = b",".join(map(_item, records))
    body = b'{"data":[%b],"has_more":%b,"next_after":%d}' % (items, more, last)
    return Response(body, media_type="application/json")


def _item(recorded: Recorded) -> bytes:
    head = f'{{"sequence":{recorded.sequence},"id":"{event_id(recorded)}",'
    return head.encode() + recorded.stored[1:]
