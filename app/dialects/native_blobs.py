"""Our own API's large values: what was too big for the log, and the files that came with tasks."""

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath

from app.audit_feed import AuditFeeds
from app.bounding import held_by
from app.bounds import LARGEST_ANSWER
from app.dialects.asked import Asked
from app.dialects.polling import blob, find
from app.files import FILE_BLOB
from app.following import READING, history
from app.openapi import PROBLEM
from app.problems import NotFound
from app.tasks import Tasks

SAID = {
    **dict.fromkeys((400, 401, 403, 404, 503), PROBLEM),
    200: ResponseSpec(dict[str, object], generate_examples=False, description="the fields"),
}


@get(
    "/tasks/{task_id:str}/blobs/{sha256:str}",
    responses=SAID | {429: PROBLEM},
    tags=["tasks"],
)
async def get_blob(
    request: Asked, task_id: FromPath[str], sha256: FromPath[str], tasks: NamedDependency[Tasks]
) -> Response[bytes]:
    """The fields of a fact that were too big for the log, by the digest that its record's `blob` names; or a file that
    came with the task, by its own."""
    request.user.need("tasks:read")
    attached, _ = await find(tasks, request.user, task_id)
    held = held_by(request.scope)
    await held.more(READING)
    for file in attached.task.files:
        content = await blob(held, tasks, file.blob, file.bytes) if file.sha256 == sha256 else None
        if content is not None:
            return attached_file(content)
    async for recorded in history(tasks.log, attached):
        reference = recorded.record.blob
        if reference is not None and reference.sha256 == sha256:
            content = await blob(held, tasks, reference.name, reference.bytes)
            if content is not None:
                return Response(content, media_type="application/json", headers={"ETag": f'"{sha256}"'})
    raise NotFound("this task has no such blob")


@get(
    "/events/blobs/{record_id:str}",
    responses=SAID | {409: PROBLEM},
    tags=["audit"],
)
async def get_record_blob(
    request: Asked, record_id: FromPath[str], feeds: NamedDependency[AuditFeeds]
) -> Response[bytes]:
    """The fields of a fact that were too big for the log, as stored, by the id of its record; or a file that came with
    a task, by the name of its blob."""
    request.user.need("audit")
    await held_by(request.scope).more(LARGEST_ANSWER)
    content = await feeds.blob(record_id, None if request.user.hears_all else request.user.owner)
    if content is None:
        raise NotFound("no such blob")
    if record_id.startswith(FILE_BLOB):
        return attached_file(content)
    return Response(content, media_type="application/json")


def attached_file(content: bytes) -> Response[bytes]:
    """A file that came with a task. Never as what it says it is: a stranger's page would else run as one of ours."""
    headers = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type="application/octet-stream", headers=headers)
