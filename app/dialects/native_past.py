"""Our own API's time travel: `GET /tasks/{task_id}?at=<sequence>`, the task as it was."""

import re

from litestar import Response
from litestar.params import QueryParameter

from app.bounding import held_by
from app.dialects.asked import Asked, known_versions
from app.dialects.native import render
from app.dialects.polling import large_fields
from app.past import NotYet, as_it_was
from app.problems import BadRequest, NotFound
from app.tasks import Tasks
from eventstore.events import TaskId

SEQUENCE = re.compile(r"[0-9]{1,18}")

# The pattern is for the reader of the schema; what is no sequence is refused below, in our own words.
AT = QueryParameter(
    description="a sequence of the log, its last at most: the task as it was then",
    schema_extra={"pattern": f"^{SEQUENCE.pattern}$"},
)

SETTLED = {"Cache-Control": "private, max-age=3600", "Vary": "Authorization, X-API-Key"}
"""What was does not change, so it need not be asked for again. Not `immutable`, and not for ever: in a log that was
restored from an older copy a sequence may be another record's, and then a reload must show it."""


async def past_task(request: Asked, tasks: Tasks, task_id: TaskId, at: str) -> Response[bytes]:
    """The task as it was when the log's last sequence was `at`. It does not wait: the past does not change.

    Raises BadRequest, whether or not there is such a task; NotFound where it was not there yet, as for any other.
    """
    if not SEQUENCE.fullmatch(at):
        raise BadRequest(f"at: {at[:60]!r} is no sequence")
    try:
        task = await as_it_was(tasks, request.user.owner, task_id, int(at))
    except NotYet as not_yet:
        raise BadRequest(f"at: {not_yet}") from not_yet
    if not task.version:
        raise NotFound("no such task")
    headers = SETTLED | {"ETag": f'"{task.version}"'}
    if task.version in known_versions(request, task):
        return Response(b"", status_code=304, headers=headers, media_type=None)
    body = render(task, await large_fields(held_by(request.scope), tasks, task))
    return Response(body, headers=headers, media_type="application/json")
