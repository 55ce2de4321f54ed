"""A task as somebody asks for it: found, waited for, and rendered once for all who ask."""

import asyncio
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from litestar import Response
from msgspec import Struct

from app.attached import Attached, Head, Ready
from app.auth import Principal
from app.bounding import held_by
from app.bounds import Held
from app.dialects.asked import Asked, known_versions
from app.dialects.native import task_id_of
from app.dialects.pace import steady_until
from app.limits import Budget
from app.problems import NotFound
from app.tasks import Tasks
from eventstore.events import TaskId
from eventstore.tokens import Dialect, Scope
from projections.task import Task


class Poll(Struct, frozen=True, kw_only=True):
    """How a dialect answers who polls a task: its route and front.py both go by it. `paths` are what comes before the
    task's id; `headers` are those of an answer that is fresh."""

    dialect: Dialect
    scope: Scope
    budget: Budget | None
    paths: tuple[str, ...]
    render: Callable[[Task, Mapping[str, object]], bytes]
    headers: Callable[[Task], dict[str, str]]


async def find(tasks: Tasks, principal: Principal, text: str) -> tuple[Attached, int | None]:
    """The owner's task, and its age where no leader answers. Raises NotFound: another owner's task does not exist."""
    attached, age_s = await tasks.get(principal.owner, task_id_asked(text))
    if attached is None:
        raise NotFound("no such task")
    return attached, age_s


def task_id_asked(text: str) -> TaskId:
    """Raises NotFound: what is no id is nobody's task."""
    task_id = task_id_of(text)
    if task_id is None:
        raise NotFound("no such task")
    return task_id


async def wait_until(tasks: Tasks, task: Task, satisfied: Callable[[Task], bool], wait_s: float) -> Task:
    """The task once it is so, or the time is over, or this process is told to stop, whatever becomes of what is
    attached meanwhile. Raises NotFound, LogUnavailable."""
    until = asyncio.get_running_loop().time() + wait_s
    while True:
        async with tasks.attach(task.owner, task.task_id) as attached:
            await attached.until(satisfied, until - asyncio.get_running_loop().time(), leaving=tasks.leaving)
            if not attached.task.version:
                raise NotFound("no such task")
            if not attached.void:  # else the log went back, and this was its other life's
                return attached.task


async def polled(request: Asked, tasks: Tasks, found: tuple[Attached, int | None], poll: Poll) -> Response[bytes]:
    """What a vendor's poll of a task answers, as `find` found it: its body, or 304 to whoever knows its version.
    Raises NoRoom, LogUnavailable, BlobDamaged."""
    attached, age_s = found
    task = attached.task
    told = poll.headers(task)
    if age_s is not None:
        told["Age"] = str(age_s)
    if task.version in known_versions(request, task):
        return Response(b"", status_code=304, headers=told, media_type=None)
    body = await rendered(held_by(request.scope), tasks, attached, task, poll.dialect, poll.render)
    return Response(body, headers=told, media_type="application/json")


def marks(task: Task) -> dict[str, str]:
    """What every vendor's poll says of a version."""
    return {"Cache-Control": "private, no-cache", "ETag": f'"{task.version}"'}


def ready(attached: Attached, poll: Poll) -> Ready | None:
    """What a plain poll of the task answers now, made once; None: its body is large, and not kept."""
    now = time.time()
    known = attached.ready.get(poll.dialect)
    if known is not None and known.since <= now < known.until:
        return known
    task = attached.task
    if task.blobs:
        return None
    body = attached.bodies.get(poll.dialect)
    if body is None:
        body = attached.bodies[poll.dialect] = poll.render(task, {})
    until = steady_until(task, datetime.fromtimestamp(now, UTC))
    headers = [(name.lower().encode(), value.encode()) for name, value in poll.headers(task).items()]
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    made = Ready(task.version, body, _head(headers + kind), _head(headers), now, until)
    attached.ready[poll.dialect] = made
    return made


def _head(headers: list[tuple[bytes, bytes]]) -> Head:
    return Head(headers, b"".join(b"%b: %b\r\n" % pair for pair in headers))


async def large_fields(held: Held, tasks: Tasks, task: Task) -> Mapping[str, object]:
    """The fields of the task that are too big for its view, with room for them, as they come and as they are told.
    Raises NoRoom, LogUnavailable, BlobDamaged."""
    await held.more(2 * task.blob_bytes)
    return await tasks.large_fields(task)


async def blob(held: Held, tasks: Tasks, name: str, size: int) -> bytes | None:
    """A blob of so many bytes, with room for it; None: it is gone. Raises NoRoom, LogUnavailable, BlobDamaged."""
    await held.more(size)
    return await tasks.log.blobs.get(name)


async def rendered(
    held: Held,
    tasks: Tasks,
    attached: Attached | None,
    task: Task,
    dialect: Dialect,
    render: Callable[[Task, Mapping[str, object]], bytes],
) -> bytes:
    """The task's body in this dialect, kept with what is attached while the task is as it is. Large ones are not kept.
    Raises NoRoom, LogUnavailable, BlobDamaged."""
    body = attached.bodies.get(dialect) if attached is not None and attached.task is task else None
    if body is None:
        body = render(task, await large_fields(held, tasks, task))
        if attached is not None and attached.task is task and not task.blobs:
            attached.bodies[dialect] = body
    return body
