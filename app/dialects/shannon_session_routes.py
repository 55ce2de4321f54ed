"""Shannon's routes for sessions, under `/shannon`: list, get, history, turns, title, deletion."""

from collections.abc import Mapping
from urllib.parse import unquote

import msgspec
from litestar import Response, delete, get, patch
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.types import ControllerRouterHandler

from app.bounding import held_by
from app.conversation import catch_up
from app.decide import Rejected
from app.dialects.asked import Asked, cause_of
from app.dialects.polling import find
from app.dialects.shannon import Refusal
from app.dialects.shannon_asked import LIMITED, answer, checked_id, number_of
from app.dialects.shannon_events import events_of
from app.dialects.shannon_frames import UNSTORED
from app.dialects.shannon_sessions import (
    NewTitle,
    SessionBody,
    SessionList,
    Titled,
    Turn,
    TurnEvent,
    Turns,
    item_of,
    past_task,
    render_session,
    title_of,
    turn_event,
    turn_of,
)
from app.dialects.shannon_submission import read
from app.following import history
from app.problems import BadRequest, NotFound, Refused
from app.sessions import DeleteSession, SessionCommand, Sessions, TitleSession
from app.tasks import Tasks
from app.views import Lists
from eventstore.codec import MAX_INLINE
from eventstore.events import Owner
from projections.session import Session
from projections.session_views import SessionTasks
from projections.task import Task

MAX_HISTORY, AT_ONCE = 1_000, 100
"""Tasks of a history, and how many of them are in memory at once."""
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of a history or of some turns, about."""
MAX_EVENTS = 5_000
MAX_READ = 50_000
"""Records that are looked at for some turns: pieces of text are no events, but they are read."""

SessionPath = FromPath[str]
"""A session's name as it was written; `unquote` it."""


@get("/api/v1/sessions", opt=LIMITED | {"tells": SessionList})
async def list_sessions(
    request: Asked, tasks: NamedDependency[Tasks], lists: NamedDependency[Lists]
) -> Response[bytes]:
    """The owner's sessions, newest first. As the vendor's, it takes a limit that is none for the default."""
    request.user.need("tasks:read")
    limit = _or_default(request, "limit", 20, low=1, high=100)
    offset = _or_default(request, "offset", 0, low=0)
    await held_by(request.scope).more(limit * MAX_INLINE)
    await catch_up(tasks, lists)
    page = await lists.sessions(request.user.owner, offset=offset, limit=limit)
    return answer(SessionList(sessions=[item_of(one) for one in page.sessions], total_count=page.total))


@get("/api/v1/sessions/{session_id:str}", opt={"tells": SessionBody})
async def get_session(
    request: Asked, session_id: SessionPath, tasks: NamedDependency[Tasks], lists: NamedDependency[Lists]
) -> Response[bytes]:
    """One session."""
    request.user.need("tasks:read")
    await catch_up(tasks, lists)
    found = await _turns(lists, request.user.owner, unquote(session_id), offset=0, limit=1)
    return Response(render_session(found.view, found.tasks[0]), media_type="application/json")


@get("/api/v1/sessions/{session_id:str}/history")
async def get_history(
    request: Asked, session_id: SessionPath, tasks: NamedDependency[Tasks], lists: NamedDependency[Lists]
) -> Response[bytes]:
    """The session's tasks, oldest first: the newest `MAX_HISTORY` of them, or as many as `MAX_BYTES` hold."""
    request.user.need("tasks:read")
    await held_by(request.scope).more(2 * MAX_BYTES)
    await catch_up(tasks, lists)
    owner, session_id = request.user.owner, unquote(session_id)
    end = total = (await _turns(lists, owner, session_id, offset=0, limit=1)).view.tally.tasks
    found, room = list[bytes](), MAX_BYTES
    while end > 0 and room > 0 and len(found) < MAX_HISTORY:
        begin = max(0, end - AT_ONCE)
        page = await _turns(lists, owner, session_id, offset=begin, limit=end - begin)
        for task in reversed(page.tasks):
            found.append(msgspec.json.encode(past_task(task, await _large(tasks, task, room))))
            room -= len(found[-1])
            if room <= 0:
                break
        end = begin
    name = msgspec.json.encode(session_id)
    body = b'{"session_id":%b,"tasks":[%b],"total":%d}' % (name, b",".join(reversed(found)), total)
    return Response(body, media_type="application/json")


@get("/api/v1/sessions/{session_id:str}/events", opt={"tells": Turns})
async def get_turns(
    request: Asked, session_id: SessionPath, tasks: NamedDependency[Tasks], lists: NamedDependency[Lists]
) -> Response[bytes]:
    """Some of the session's tasks, oldest first, each with its events."""
    request.user.need("tasks:read")
    session_id = checked_id(unquote(session_id), "session_id")
    limit = number_of(request, "limit", 10, low=1, high=100)
    offset = number_of(request, "offset", 0, low=0)
    payload = request.query_params.get("include_payload") == "true"
    await held_by(request.scope).more(2 * MAX_BYTES)
    await catch_up(tasks, lists)
    found = await _turns(lists, request.user.owner, session_id, offset=offset, limit=limit)
    reading = _Reading(request, tasks, payload=payload)
    turns = [await reading.turn(number, task) for number, task in enumerate(found.tasks, offset + 1)]
    return answer(Turns(session_id=session_id, count=found.view.tally.tasks, turns=turns))


@patch("/api/v1/sessions/{session_id:str}", opt=LIMITED | {"asks": NewTitle, "tells": Titled})
async def title_session(
    request: Asked, session_id: SessionPath, sessions: NamedDependency[Sessions]
) -> Response[bytes]:
    """Call the session something."""
    request.user.need("tasks:write")
    title = title_of(read(await request.body(), NewTitle).title)
    session_id = unquote(session_id)
    await _execute(request, sessions, session_id, TitleSession(title=title))
    return answer(Titled(session_id=session_id, title=title))


@delete("/api/v1/sessions/{session_id:str}", opt=LIMITED)
async def delete_session(request: Asked, session_id: SessionPath, sessions: NamedDependency[Sessions]) -> None:
    """Take the session out of the list. Its tasks can still be asked for one by one."""
    request.user.need("tasks:write")
    await _execute(request, sessions, unquote(session_id), DeleteSession())


HANDLERS: list[ControllerRouterHandler] = [
    *(list_sessions, get_session, get_history, get_turns),
    *(title_session, delete_session),
]


class _Reading:
    """Events of one turn after the other, until there are too many for one answer."""

    def __init__(self, request: Asked, tasks: Tasks, *, payload: bool) -> None:
        self._request = request
        self._tasks = tasks
        self._payload = payload
        self._events = self._records = 0
        self.room = MAX_BYTES

    async def turn(self, number: int, task: Task) -> Turn:
        """Raises Refusal, LogUnavailable."""
        large = await _large(self._tasks, task, self.room)
        if large:
            self.room -= task.blob_bytes
        return turn_of(number, task, large, await self._events_of(task))

    async def _events_of(self, task: Task) -> list[TurnEvent]:
        try:
            attached, _ = await find(self._tasks, self._request.user, task.task_id)
        except NotFound:
            return []  # it was archived since
        told = list[TurnEvent]()
        async for recorded in history(self._tasks.log, attached):
            self._records += 1
            for event in events_of(recorded, attached.task):
                if event.type not in UNSTORED:
                    told.append(turn_event(event, payload=self._payload))
                    self._events += 1
                    self.room -= len(recorded.stored)
            if self._events > MAX_EVENTS or self._records > MAX_READ or self.room < 0:
                raise Refusal(413, "Too many events: ask for fewer turns by limit")
        return told


async def _turns(lists: Lists, owner: Owner, session_id: str, *, offset: int, limit: int) -> SessionTasks:
    """Raises Refusal: another owner's does not exist either."""
    found = await lists.session_tasks(owner, session_id, offset=offset, limit=limit)
    if found is None:
        raise Refusal(404, "Session not found")
    return found


async def _execute(request: Asked, sessions: Sessions, session_id: str, command: SessionCommand) -> Session:
    done = await sessions.execute(request.user.owner, session_id, command, cause_of(request))
    if not isinstance(done, Rejected):
        return done
    raise Refusal(404, "Session not found") if done.reason == "not_found" else Refused(done)


async def _large(tasks: Tasks, task: Task, room: int) -> Mapping[str, object]:
    """What is too big for the views, where the answer has room for it. Raises LogUnavailable."""
    if not task.blobs or task.blob_bytes > room:
        return {}
    return await tasks.large_fields(task)


def _or_default(request: Asked, name: str, default: int, *, low: int, high: int | None = None) -> int:
    try:
        return number_of(request, name, default, low=low, high=high)
    except BadRequest:
        return default
