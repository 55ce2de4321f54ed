"""Our own API's lists: an owner's tasks, read from the views."""

from datetime import datetime
from typing import Annotated, get_args

import msgspec
from litestar import HttpMethod, Response, get, route
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromQuery, QueryParameter
from msgspec import Meta

from app.bounding import held_by
from app.dialects.asked import Asked, every, flag, words_of
from app.dialects.native import PublicStatus, TaskList, render
from app.openapi import PROBLEM
from app.problems import BadRequest
from app.views import Lists
from eventstore.codec import MAX_INLINE
from projections.listing import Filter
from projections.views import Count, Page

MAX_WORDS = 200
MOMENT = Annotated[datetime, Meta(tz=True)]

TASKS = ResponseSpec(TaskList, generate_examples=False, description="a page of tasks")

# The patterns are for the reader of the schema; what they do not match is refused below, in our own words.
A_STATUS = f"({'|'.join(get_args(PublicStatus))})"
STATUSES = QueryParameter(
    description="statuses, with commas between", schema_extra={"pattern": f"^{A_STATUS}(,{A_STATUS})*$"}
)
TIME = QueryParameter(description="exclusive; RFC 3339, with its zone", schema_extra={"format": "date-time"})
CURSOR = QueryParameter(
    description="the `next_cursor` of the page before", schema_extra={"pattern": "^d[A-H][A-Za-z0-9_-]{10}$"}
)
WORDS = QueryParameter(description="found in the title or the input, whatever its case", max_length=MAX_WORDS)


FLAG = {"enum": ["true", "false"]}
TOTAL = QueryParameter(description="count them all, too", schema_extra=FLAG)


@get("/tasks", responses={200: TASKS, 400: PROBLEM, 401: PROBLEM, 403: PROBLEM, 503: PROBLEM}, tags=["tasks"])
async def list_tasks(
    request: Asked,
    lists: NamedDependency[Lists],
    status: Annotated[str | None, STATUSES] = None,
    agent: FromQuery[str | None] = None,
    session_id: FromQuery[str | None] = None,
    created_after: Annotated[str | None, TIME] = None,
    created_before: Annotated[str | None, TIME] = None,
    q: Annotated[str | None, WORDS] = None,
    cursor: Annotated[str | None, CURSOR] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    total: Annotated[str, TOTAL] = "false",
) -> Response[bytes]:
    """Your tasks, newest first, as far as the views are: they follow the log by some tenths of a second. A large input
    or result is null here, and whole in the task itself."""
    del status  # read with all that was said of it
    request.user.need("tasks:read")
    statuses, counted = every(request, "status"), flag("total", total)
    wanted = Filter(
        statuses=None if statuses is None else frozenset(words_of("status", statuses, get_args(PublicStatus))),
        agent=agent,
        session_id=session_id,
        created_after=None if created_after is None else time_of("created_after", created_after),
        created_before=None if created_before is None else time_of("created_before", created_before),
        q=q or None,
    )
    await held_by(request.scope).more(limit * MAX_INLINE)
    page = await lists.page(request.user.owner, wanted, after=cursor, limit=limit)
    count = await lists.count(request.user.owner, wanted) if counted else None
    headers = {"Cache-Control": "private, no-cache"}
    return Response(listed(page, count), headers=headers, media_type="application/json")


def options(path: str, allow: str) -> HTTPRouteHandler:
    """What can be done there. The framework's own answer knows the path's first handler only; this one goes before."""

    @route(path, http_method=HttpMethod.OPTIONS, status_code=204, include_in_schema=False)
    async def tell() -> Response[None]:
        return Response(None, status_code=204, headers={"Allow": allow})

    return tell


def listed(page: Page, count: Count | None) -> bytes:
    """The page as it is sent."""
    rest: dict[str, object] = {"has_more": page.next_cursor is not None, "next_cursor": page.next_cursor}
    if count is not None:
        rest |= {"total": count.tasks, "total_exact": count.exact}
    items = b",".join(render(task, {}) for task in page.tasks)
    return b'{"data":[%b],%b' % (items, msgspec.json.encode(rest)[1:])


def time_of(name: str, text: str) -> datetime:
    """A time with its zone. Raises BadRequest."""
    try:
        return msgspec.convert(text, MOMENT)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{name}: {text!r} is no time with a zone: 2026-01-31T12:00:00Z, say") from error
