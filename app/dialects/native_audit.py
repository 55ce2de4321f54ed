"""Our own API's audit feed: the whole log, or one owner's part of it, for tokens with scope `audit`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, get_args
from urllib.parse import urlencode

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency, Provide
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Operation, Schema
from litestar.params import QueryParameter
from litestar.types import ASGIApp
from msgspec import UNSET, Struct, UnsetType

from app.audit_answers import LAST, NDJSON, OWNER, AuditStream, as_cloudevent
from app.audit_feed import AuditFeeds, Page, Question
from app.audit_filter import Wanted
from app.auth import NotAllowed, Principal, Revocations
from app.bounding import held_by
from app.dialects.asked import Asked, every, flag, one_of
from app.dialects.native import task_id_of
from app.dialects.native_lists import FLAG, TIME, time_of
from app.following import READING
from app.openapi import PROBLEM
from app.problems import BadRequest
from app.streams import Streams
from app.tasks import Tasks
from eventstore import events
from eventstore.cursor import cursor_of
from eventstore.events import Json, Owner
from eventstore.log import AGENT, OWNER_WORD
from projections.cloudevents import UNREADABLE, cloudevent_of
from projections.lines import line_of

JSON, SSE = "application/json", "text/event-stream"
BATCH, ONE = "application/cloudevents-batch+json", "application/cloudevents+json"
KINDS = [JSON, SSE, NDJSON, BATCH, ONE]
MAX_NAMED = 100
"""Values of one filter."""

FACTS = (*get_args(events.TaskFact), *get_args(events.SessionFact), events.Checkpoint)
TYPES = (*(str(fact.__struct_config__.tag) for fact in FACTS), UNREADABLE)
"""What `type` may name: the facts' tags, and what is no fact."""


class LogLine(Struct, kw_only=True):
    """A record as it is stored, where in the log, on which subject: `tasks.<partition>.<owner>.<task id>`."""

    sequence: int
    id: str
    subject: str
    record: dict[str, Json]
    imported: bool | UnsetType = UNSET


class LogPage(Struct, kw_only=True):
    """A page of the log, oldest first; `next_after` goes into the next question's `after`."""

    data: list[LogLine]
    has_more: bool
    next_after: int


@dataclass
class InSeveralKinds(Operation):
    """An operation that answers by `Accept` (the framework knows of one media type an answer)."""

    def __post_init__(self) -> None:
        answer = (self.responses or {}).get("200")
        if isinstance(answer, OpenAPIResponse) and answer.content is not None:
            text, event = Schema(type=OpenAPIType.STRING), Schema(type=OpenAPIType.OBJECT)
            answer.content[SSE] = answer.content[NDJSON] = OpenAPIMediaType(schema=text)
            answer.content[BATCH] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.ARRAY, items=event))
            answer.content[ONE] = OpenAPIMediaType(schema=event)


def some_of(description: str, one: str) -> QueryParameter:
    """A comma list. The pattern is for the reader of the schema; what does not match is refused in our own words."""
    pattern = f"^{one}(,{one}){{0,{MAX_NAMED - 1}}}$"
    return QueryParameter(description=f"{description}, with commas between", schema_extra={"pattern": pattern})


UUID = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
A_TYPE = f"({'|'.join(map(re.escape, TYPES))})"
OWNERS = some_of("owners; others than one's own by scope `audit:all` only", OWNER_WORD.pattern)
AGENTS = some_of("agents, of whose tasks", AGENT.pattern)
TASKS = some_of("tasks", f"(task_)?{UUID}")
OF_TYPES = some_of("tags of facts", A_TYPE)
# What is no cursor is refused by `cursor_of`. A zero more: as a CloudEvent's `sequence` is written.
AFTER = QueryParameter(
    description="an event id or a sequence", schema_extra={"pattern": "^0?[0-9]{1,19}(-0?[0-9]{1,19})?$"}
)
SINCE = QueryParameter(
    description="from the first record on that came into the log then; RFC 3339, with its zone",
    schema_extra=TIME.schema_extra,
)
LIMIT = QueryParameter(ge=1, le=1000, description="pages: 100 without it; streams end after so many")
FORMAT = QueryParameter(
    description="what a stream's lines, or its events' data, are", schema_extra={"enum": ["records", "cloudevents"]}
)
FOLLOW = QueryParameter(description="NDJSON goes on with what comes", schema_extra=FLAG)
TOKEN = QueryParameter(description="on SSE, instead of a header")
SAID = {400: PROBLEM, 401: PROBLEM, 403: PROBLEM, 409: PROBLEM, 503: PROBLEM}
PAGE = ResponseSpec(LogPage, generate_examples=False, description="a page, or a stream")

Word = TypeVar("Word", bound=str)


class Filters(Struct, frozen=True):
    """What of the log is asked for, as it is said."""

    owner: str | None
    agent: str | None
    task_id: str | None
    type: str | None


def filters(
    request: Asked,
    owner: Annotated[str | None, OWNERS] = None,
    agent: Annotated[str | None, AGENTS] = None,
    task_id: Annotated[str | None, TASKS] = None,
    type: Annotated[str | None, OF_TYPES] = None,
) -> Filters:
    """The filters of a query."""
    del owner, agent, task_id, type  # read with all that was said of each
    return Filters(*(every(request, name) for name in Filters.__struct_fields__))


@get(
    "/events",
    responses={**SAID, 200: PAGE, 204: ResponseSpec(None)},
    dependencies={"filtered": Provide(filters, sync_to_thread=False)},
    tags=["audit"],
    operation_class=InSeveralKinds,
)
async def get_log(
    request: Asked,
    tasks: NamedDependency[Tasks],
    feeds: NamedDependency[AuditFeeds],
    streams: NamedDependency[Streams],
    revocations: NamedDependency[Revocations],
    filtered: NamedDependency[Filters],
    after: Annotated[str | None, AFTER] = None,
    since: Annotated[str | None, SINCE] = None,
    limit: Annotated[int | None, LIMIT] = None,
    format: Annotated[str, FORMAT] = "records",
    follow: Annotated[str, FOLLOW] = "false",
    token: Annotated[str | None, TOKEN] = None,
) -> ASGIApp:
    """The log: your own part of it (scope `audit`), or all of it (`audit:all`). By `Accept`: a JSON page; a stream that
    goes on (SSE, resumes by `Last-Event-ID`, which beats `after`); NDJSON, to the end that the log has now or with
    `follow=true` beyond; a page of CloudEvents (batch); or the one CloudEvent that comes next (204: none yet)."""
    del token  # read where the request is authenticated
    request.user.need("audit")
    form, follows = one_of("format", format, "records", "cloudevents"), flag("follow", follow)
    kind = request.accept.best_match(KINDS, JSON)
    resumed = (request.headers.get("last-event-id") if kind == SSE else None) or after
    question = Question(
        wanted=wanted_of(filtered, request.user),
        only=None if request.user.hears_all else request.user.owner,
        cursor=None if resumed is None else cursor_of(resumed),
        since=None if since is None else time_of("since", since),
        limit=limit,
        follow=kind == SSE or (kind == NDJSON and follows),
    )
    if kind not in (SSE, NDJSON):
        question = msgspec.structs.replace(question, limit=1 if kind == ONE else limit or 100)
        await held_by(request.scope).more(READING)
        return answer_page(request, await feeds.page(question, request.user.owner), kind)  # pyright: ignore[reportReturnType]  # litestar takes both
    return AuditStream(
        feeds,
        streams,
        revocations,
        tasks.metrics,
        principal=request.user,
        question=question,
        kind="sse" if kind == SSE else "ndjson",
        render=as_cloudevent if form == "cloudevents" else line_of,
    )


def answer_page(request: Asked, page: Page, kind: str) -> Response[bytes]:
    """The page as it is asked for. `Link` leads on: also from a last page, to what comes later."""
    # A time that is still to come is asked for again; and nobody's token goes where addresses are kept.
    left = {"after", "token"} | ({"since"} if page.arrivals else set[str]())
    rest = [(name, value) for name, value in request.query_params.multi_items() if name not in left]
    on = f"{str(request.scope['root_path']).rstrip('/')}/events?{urlencode([*rest, ('after', page.cursor)])}"
    headers = {"Cache-Control": "private, no-cache", LAST: str(page.last), "Link": f'<{on}>; rel="next"'}
    if not request.user.hears_all:
        headers[OWNER] = request.user.owner
    match kind:
        case "application/cloudevents+json":
            if not page.arrivals:
                return Response(b"", status_code=204, headers=headers, media_type=None)
            body = cloudevent_of(page.arrivals[0])
        case "application/cloudevents-batch+json":
            body = b"[%b]" % b",".join(map(cloudevent_of, page.arrivals))
        case _:
            items = b",".join(line_of(arrival)[:-1] for arrival in page.arrivals)
            more = b"true" if page.more else b"false"
            body = b'{"data":[%b],"has_more":%b,"next_after":%d}' % (items, more, page.position)
    return Response(body, headers=headers, media_type=kind)


def wanted_of(filtered: Filters, principal: Principal) -> Wanted:
    """What is asked for, and may be. Raises BadRequest, NotAllowed: by name, whether there is such an owner or not."""
    owners = _named("owner", filtered.owner, lambda word: Owner(word) if OWNER_WORD.fullmatch(word) else None)
    if not principal.hears_all:
        if owners - {principal.owner}:
            raise NotAllowed("audit:all")
        owners = frozenset({principal.owner})
    return Wanted(
        owners=owners,
        agents=_named("agent", filtered.agent, lambda word: word if AGENT.fullmatch(word) else None),
        tasks=_named("task_id", filtered.task_id, task_id_of),
        types=_named("type", filtered.type, lambda word: word if word in TYPES else None),
    )


def _named(name: str, text: str | None, read: Callable[[str], Word | None]) -> frozenset[Word]:
    words = [] if text is None else text.split(",")
    if len(words) > MAX_NAMED:
        raise BadRequest(f"{name}: {MAX_NAMED} of them at most, not {len(words)}")
    found = {word: read(word) for word in words}
    unknown = [word for word, value in found.items() if value is None]
    if unknown:
        there_are = f"; there are: {', '.join(TYPES)}" if name == "type" else ""
        raise BadRequest(f"{name}: {', '.join(repr(word[:80]) for word in unknown)} is none{there_are}")
    return frozenset(value for value in found.values() if value is not None)
