"""Shannon's routes for what happens in a task: its events, its timeline, its stream, and its large values."""

from urllib.parse import urlencode

import msgspec
from litestar import Response, get
from litestar.datastructures import Headers, MultiDict
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ASGIApp, ControllerRouterHandler
from msgspec import Struct

from app.attached import Attached
from app.auth import Principal, Revocations
from app.bounding import held_by
from app.dialects.asked import Asked
from app.dialects.crossroads import asked_path
from app.dialects.polling import blob, find
from app.dialects.shannon import ID, Refusal
from app.dialects.shannon_asked import LIMITED, answer, checked_id, number_of
from app.dialects.shannon_events import events_of
from app.dialects.shannon_frames import UNSTORED, raw
from app.dialects.shannon_stream import SSE, Position, ShannonWords, position_of
from app.dialects.shannon_timeline import Persisted, Stats, Timeline, TimelineEvent, timeline_of
from app.feed import TaskStream
from app.following import READING, history
from app.problems import BadRequest, NotFound
from app.streams import Streams
from app.tasks import Tasks

MAX_PAGE_BYTES = 4 * 1024 * 1024
"""Bytes of a page of events from which on no more are added."""
MAX_TIMELINE = 24 * 1024 * 1024
"""Bytes of the longest task's timeline, about."""
TEXT = "text/plain"

TaskPath = FromPath[str]
Query = MultiDict[str]


class Following(Struct, frozen=True):
    """What a stream is asked for."""

    workflow_id: str
    types: frozenset[str]
    position: Position


@get("/api/v1/tasks/{task_id:str}/events", opt=LIMITED)
async def get_events(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """The task's events but for the pieces of its text, oldest first, a page of them."""
    request.user.need("tasks:read")
    limit = number_of(request, "limit", 50, low=1, high=200)
    offset = number_of(request, "offset", 0, low=0)
    attached, _ = await find(tasks, request.user, checked_id(task_id))
    await held_by(request.scope).more(READING + 2 * MAX_PAGE_BYTES)
    found, size, passed = list[bytes](), 0, 0
    async for recorded in history(tasks.log, attached):
        for event in events_of(recorded, attached.task):
            if event.type in UNSTORED:
                continue
            passed += 1
            if passed > offset:
                found.append(raw(event))
                size += len(found[-1])
            if len(found) == limit or size > MAX_PAGE_BYTES:
                return _page(found)
    return _page(found)


@get("/api/v1/tasks/{task_id:str}/timeline", opt={"tells": Timeline})
async def get_timeline(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """The task's life as a workflow engine would tell it. All of it is kept in any case: to `persist` does nothing."""
    request.user.need("tasks:read")
    asked = request.query_params
    attached, _ = await find(tasks, request.user, checked_id(task_id))
    full, payloads = asked.get("mode") == "full", asked.get("include_payloads") == "true"
    await held_by(request.scope).more(READING + MAX_TIMELINE)
    events, size = list[TimelineEvent](), 0
    async for recorded in history(tasks.log, attached):
        size += len(recorded.stored)
        events += timeline_of(recorded, full=full, payload=payloads and size <= MAX_PAGE_BYTES)
    if asked.get("persist") == "true":
        return answer(Persisted(workflow_id=attached.task_id, count=len(events)), 202)
    return answer(Timeline(attached.task_id, events, Stats(len(events), "full" if full else "summary")))


@get("/api/v1/tasks/{task_id:str}/stream")
async def redirect_to_stream(request: Asked, task_id: TaskPath) -> Response[None]:
    """Where the task's stream is. A token in the query is not passed on."""
    request.user.need("tasks:read")
    checked_id(task_id)
    kept = {name: request.query_params[name] for name in ("types", "last_event_id") if name in request.query_params}
    base, _, _ = asked_path(request.scope).rpartition("/tasks/")
    # One slash: after two, a client would look for a host.
    location = f"/{base.lstrip('/')}/stream/sse?{urlencode({'workflow_id': task_id} | kept)}"
    return Response(None, status_code=307, headers={"Location": location}, media_type="text/plain")


@get("/api/v1/stream/sse")
async def stream_sse(
    request: Asked,
    tasks: NamedDependency[Tasks],
    streams: NamedDependency[Streams],
    revocations: NamedDependency[Revocations],
) -> ASGIApp:
    """A task's events as they come, from its beginning or from where the client was, to `done`."""
    request.user.need("tasks:read")
    asked = followed(request.query_params, request.headers)
    attached = await workflow(tasks, request.user, asked.workflow_id)
    words = ShannonWords(tasks, attached.task_id, asked.position, asked.types, SSE)
    return TaskStream(tasks, streams, revocations, request.user, attached.task_id, words)


@get("/api/v1/blob/{key:str}")
async def get_blob(request: Asked, key: FromPath[str], tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """What was too large for an event, by the key that its payload names: the text, or the JSON of what is no text."""
    request.user.need("tasks:read")
    task_id, _, sha256 = key.rpartition(":")
    try:
        attached, _ = await find(tasks, request.user, task_id)
    except NotFound as error:
        raise Refusal(404, "Blob not found") from error
    held = held_by(request.scope)
    await held.more(READING)
    async for recorded in history(tasks.log, attached):
        reference = recorded.record.blob
        if reference is None or reference.sha256 != sha256:
            continue
        content = await blob(held, tasks, reference.name, reference.bytes)
        if content is not None:
            return Response(_text_of(content), media_type=TEXT, headers={"X-Content-Type-Options": "nosniff"})
    raise Refusal(404, "Blob not found")


HANDLERS: list[ControllerRouterHandler] = [get_events, get_timeline, redirect_to_stream, stream_sse, get_blob]


def followed(query: Query, headers: Headers | None = None) -> Following:
    """What is asked for; the header beats the query, which is judged all the same. Raises BadRequest."""
    workflow_id = query.get("workflow_id") or ""
    if not ID.fullmatch(workflow_id):
        raise BadRequest("Invalid or missing workflow_id")
    position = position_of(query.get("last_event_id") or "0")
    if position is None:
        raise BadRequest("Invalid last_event_id")
    seen = headers.get("last-event-id") if headers is not None else None
    types = frozenset(kind for kind in (one.strip() for one in (query.get("types") or "").split(",")) if kind)
    return Following(workflow_id, types, position_of(seen or "") or position)


async def workflow(tasks: Tasks, principal: Principal, workflow_id: str) -> Attached:
    """Raises Refusal: another owner's does not exist either."""
    try:
        attached, _ = await find(tasks, principal, workflow_id)
    except NotFound as error:
        raise Refusal(404, "Workflow not found") from error
    return attached


def _page(found: list[bytes]) -> Response[bytes]:
    body = b'{"events":[%b],"count":%d}' % (b",".join(found), len(found))
    return Response(body, media_type="application/json")


def _text_of(content: bytes) -> bytes:
    match list(msgspec.json.decode(content, type=dict[str, object]).values()):
        case [str() as text]:
            return text.encode()
        case _:
            return content
