"""Nanonets' routes, under `/nanonets`; at its own paths crossroads.py finds them."""

import inspect
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import msgspec
import structlog
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.types import ASGIApp

from app.agents.agent import Agent
from app.agents.catalogue import Catalogue
from app.auth import Revocations
from app.bounding import held_by
from app.commands import CancelTask, ReceiveInput
from app.decide import Rejected
from app.dialects.asked import Asked, cause_of, idempotency_key, keyed, words_of
from app.dialects.crossroads import asked_path
from app.dialects.nanonets import (
    RETRY_AFTER_S,
    AgentBody,
    NanonetsStatus,
    NewRun,
    NotNow,
    agent_id,
    agent_named,
    bare,
    ours,
    read_answer,
    read_output_config,
    read_run,
    refusal_of,
    render,
    render_begun,
    render_summary,
    status_of,
    task_id_said,
    to_command,
)
from app.dialects.nanonets_feed import History, feed, messages
from app.dialects.native_lists import MAX_WORDS, time_of
from app.dialects.pace import retry_after
from app.dialects.polling import Poll, find, large_fields, marks, polled
from app.files import Upload
from app.problems import Refused
from app.settings import HttpSettings
from app.streams import Streams
from app.tasks import Tasks
from app.uploads import bounded, form_of
from app.views import Lists
from eventstore.codec import MAX_INLINE
from projections.listing import Filter
from projections.task import Task

log = structlog.stdlib.get_logger()

PREFIX = "/nanonets"
VERSIONS = ("/api/v1", "/v1")
"""The vendor's pages write its paths with the first in code, with the second in prose."""
TEXTS = ("query", "output_config")
"""The fields of a form that are no files."""
MAX_PAGES = 20
"""Of our list, looked through for one page of theirs."""

TaskPath = FromPath[str]


# Its own bounds: a form may be larger than our other requests, and is never in memory whole.
@post("/agents/{agent:str}/run", status_code=200, request_max_body_size=None)
async def run_agent(
    request: Asked,
    agent: FromPath[str],
    tasks: NamedDependency[Tasks],
    catalogue: NamedDependency[Catalogue],
    http: NamedDependency[HttpSettings],
) -> Response[bytes]:
    """Begin a task, and answer at once."""
    request.user.need("tasks:write")
    name = agent_named(agent, catalogue)
    key = idempotency_key(request)
    async with _asked(request, http) as (body, uploads):
        command = to_command(body, agent=name, digests=[(one.name, one.sha256) for one in uploads])
        done = await tasks.create(request.user.owner, command, cause_of(request), key=key, uploads=uploads)
    if isinstance(done, Rejected):
        raise Refused(done)
    headers = {"Idempotency-Replayed": "true"} if done.recorded is None else {}
    return Response(render_begun(done.task), headers=headers | _wait(done.task), media_type="application/json")


@get("/tasks/{task_id:str}")
async def poll_task(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """One task. `If-None-Match` with its ETag gives 304; `Retry-After` is how long a kind poller waits."""
    request.user.need("tasks:read")
    found = await find(tasks, request.user, task_id_said(task_id))
    return await polled(request, tasks, found, POLL)


@get("/tasks/{task_id:str}/summary")
async def summary(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """The final answer; 409 until there is one."""
    request.user.need("tasks:read")
    attached, _ = await find(tasks, request.user, task_id_said(task_id))
    task = attached.task
    large = await large_fields(held_by(request.scope), tasks, task)
    return Response(render_summary(task, large), media_type="application/json")


@get("/tasks/{task_id:str}/result")
async def result(
    request: Asked,
    task_id: TaskPath,
    tasks: NamedDependency[Tasks],
    streams: NamedDependency[Streams],
    revocations: NamedDependency[Revocations],
) -> ASGIApp:
    """All that was done so far, in order, in any state."""
    request.user.need("tasks:read")
    attached, _ = await find(tasks, request.user, task_id_said(task_id))
    task = attached.task
    said = {"task_id": bare(task), "agent_id": agent_id(task.agent), "status": status_of(task)}
    head = msgspec.json.encode(said)[:-1] + b',"feed":['
    end = b"]}" if task.error is None else b'],"error":%b}' % msgspec.json.encode(task.error)
    return History(tasks, streams, revocations, request.user, task, feed, head=head, end=end)


@get("/tasks/{task_id:str}/messages")
async def list_messages(
    request: Asked,
    task_id: TaskPath,
    tasks: NamedDependency[Tasks],
    streams: NamedDependency[Streams],
    revocations: NamedDependency[Revocations],
) -> ASGIApp:
    """What was said, oldest first: the last of the assistant's is the question that is waited on."""
    request.user.need("tasks:read")
    attached, _ = await find(tasks, request.user, task_id_said(task_id))
    return History(tasks, streams, revocations, request.user, attached.task, messages, head=b'{"data":[', end=b"]}")


@post("/tasks/{task_id:str}/message", status_code=200)
async def send_message(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Answer the agent's question; without one, leave a message for its next look at its inbox. What awaits a review
    takes none."""
    request.user.need("tasks:write")
    asked = task_id_said(task_id)
    text = read_answer(await request.body()).message
    command = keyed(request, ReceiveInput(text=text), wish=text)
    attached, _ = await find(tasks, request.user, asked)
    task = attached.task
    if task.status == "awaiting_review" and command.key not in task.keys:
        # It would lie in the inbox, and whoever sent it would take it for the decision.
        raise NotNow(task, f"a message decides nothing; approve it by POST /tasks/{asked}/review of the native API")
    done = await tasks.execute(request.user.owner, asked, command, cause_of(request))
    if isinstance(done, Rejected):
        raise Refused(done)
    return _told(done.task)


@post("/tasks/{task_id:str}/cancel", status_code=200)
async def cancel_task(request: Asked, task_id: TaskPath, tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """Stop the task; one that has ended is answered as it is. A body is not read."""
    request.user.need("tasks:write")
    asked = task_id_said(task_id)
    command = keyed(request, CancelTask(by=request.user.actor))
    done = await tasks.execute(request.user.owner, asked, command, cause_of(request))
    if not isinstance(done, Rejected):
        return _told(done.task)
    if done.reason != "ended":
        raise Refused(done)
    attached, _ = await find(tasks, request.user, asked)
    return _told(attached.task)


@get("/tasks")
async def list_tasks(
    request: Asked,
    lists: NamedDependency[Lists],
    catalogue: NamedDependency[Catalogue],
    agent_id: FromQuery[str | None] = None,
    status: FromQuery[str | None] = None,
    created_after: FromQuery[str | None] = None,
    created_before: FromQuery[str | None] = None,
    q: Annotated[str | None, QueryParameter(max_length=MAX_WORDS)] = None,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> Response[bytes]:
    """The workspace's tasks, newest first."""
    request.user.need("tasks:read")
    statuses = None if status is None else frozenset(words_of("status", status, get_args(NanonetsStatus)))
    wanted = Filter(
        statuses=None if statuses is None else ours(statuses),
        agent=None if agent_id is None else agent_named(agent_id, catalogue),
        created_after=None if created_after is None else time_of("created_after", created_after),
        created_before=None if created_before is None else time_of("created_before", created_before),
        q=q or None,
        title_only=True,
    )
    await held_by(request.scope).more(limit * MAX_INLINE)
    found = list[Task]()
    for _ in range(MAX_PAGES):
        # Theirs may be fewer than ours: what has begun and waits to go on is pending to us, and running to them.
        page = await lists.page(request.user.owner, wanted, after=cursor, limit=limit - len(found))
        found += [task for task in page.tasks if statuses is None or status_of(task) in statuses]
        cursor = page.next_cursor
        if cursor is None or len(found) == limit:
            break
    rest = msgspec.json.encode({"has_more": cursor is not None, "next_cursor": cursor})
    body = b'{"data":[%b],%b' % (b",".join(render(task, {}) for task in found), rest[1:])
    return Response(body, headers={"Cache-Control": "private, no-cache"}, media_type="application/json")


@get("/agents")
async def list_agents(request: Asked, catalogue: NamedDependency[Catalogue]) -> Response[bytes]:
    """The agents that can be run."""
    request.user.need("tasks:read")
    body = msgspec.json.encode({"data": [_agent(one) for one in catalogue], "has_more": False, "next_cursor": None})
    return Response(body, media_type="application/json")


@get("/agents/{agent:str}")
async def get_agent(request: Asked, agent: FromPath[str], catalogue: NamedDependency[Catalogue]) -> Response[bytes]:
    """One of them, by its UUID or its name."""
    request.user.need("tasks:read")
    one = catalogue.get(agent_named(agent, catalogue))
    assert one is not None, "it was named"
    return Response(msgspec.json.encode(_agent(one)), media_type="application/json")


def _marks(task: Task) -> dict[str, str]:
    return marks(task) | _wait(task)


POLL = Poll(
    dialect="nanonets",
    scope="tasks:read",
    budget="nanonets",
    paths=tuple(f"{PREFIX}{version}/tasks" for version in VERSIONS),
    render=render,
    headers=_marks,
)


def routes() -> list[Router]:
    """All of them, twice. Our own API's description leaves them out: docs/reference/nanonets.md has them."""
    handlers = [run_agent, poll_task, summary, result, list_messages, send_message, cancel_task, list_tasks]
    handlers += [list_agents, get_agent]
    limited = {"limit": "nanonets"}
    return [
        Router(path=PREFIX + version, route_handlers=handlers, opt=limited, include_in_schema=False)
        for version in VERSIONS
    ]


def answers_for(path: str) -> bool:
    """Whether whoever asks for this path, also where nothing is, expects Nanonets' words."""
    return f"{path}/".startswith(f"{PREFIX}/")


def on_error(request: Request[object, object, State], error: Exception) -> Response[bytes]:
    """Every error on Nanonets' paths in its shape; one that nobody expected is ours, and is logged."""
    status_code, refusal, headers = refusal_of(error)
    if status_code == 500:
        log.error("http.fault", path=asked_path(request.scope), exc_info=error)
    body = msgspec.json.encode(refusal)
    return Response(body, status_code=status_code, headers=headers, media_type="application/json")


@asynccontextmanager
async def _asked(request: Asked, http: HttpSettings) -> AsyncGenerator[tuple[NewRun, list[Upload]]]:
    """What is asked for, and the files that came with it. Raises BadRequest, TooLarge."""
    kind, options = request.content_type
    if kind != "multipart/form-data":
        yield read_run(await bounded(request.stream(), http.max_body_bytes)), []
        return
    boundary = options.get("boundary", "")
    bounds = {"max_bytes": http.max_upload_bytes, "max_text_bytes": http.max_body_bytes}
    async with form_of(request.stream(), boundary, texts=TEXTS, **bounds) as form:
        config = form.texts.get("output_config")
        output_config = None if config is None else read_output_config(config)
        yield NewRun(query=form.texts.get("query"), output_config=output_config), form.uploads


def _told(task: Task) -> Response[bytes]:
    return Response(render(task, {}), headers=_wait(task), media_type="application/json")


def _wait(task: Task) -> dict[str, str]:
    """How long a kind poller waits."""
    return retry_after(task, least_s=RETRY_AFTER_S)


def _agent(agent: Agent) -> AgentBody:
    # An agent comes with its code, which has a time of its own: the same in every process.
    changed_at = datetime.fromtimestamp(int(Path(inspect.getfile(type(agent))).stat().st_mtime), UTC)
    return AgentBody(
        id=agent_id(agent.name),
        name=agent.name,
        description=agent.description,
        is_active=True,
        max_concurrent_tasks=agent.limit,
        created_at=changed_at,
        updated_at=changed_at,
    )
