"""Build the API from its rooms: routes, layers, and whose words an error is told in."""

import ipaddress
import re

import structlog
from litestar import Litestar, MediaType, Request, Response, get
from litestar.config.cors import CORSConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.exceptions.http_exceptions import RequestEntityTooLarge
from litestar.handlers import HTTPRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult, DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import ScalarRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp
from msgspec import Struct

from app import __version__
from app.auth import Bearers, credentials
from app.beginning import Beginning
from app.bounding import Bounding
from app.dialects import nanonets_routes, native_routes, niyra_routes, shannon_routes
from app.dialects.crossroads import Crossroads
from app.dialects.shannon_asked import query_token
from app.dialects.shannon_tracing import Tracing
from app.front import Front
from app.heads import Heads
from app.limiting import Limiting, Telling
from app.limits import Budget
from app.metrics import exposition, read_figures
from app.mistakes import of_framework, read_in_line
from app.observed import Observed
from app.openapi import OurSchemas
from app.problems import MEDIA_TYPE, encode, problem_of
from app.rooms import Rooms
from app.sessions import Sessions
from app.uploads import over
from eventstore.checkpointing import Signer

log = structlog.stdlib.get_logger()

EVENT_STREAM = "text/event-stream"
OUR_STREAMS = re.compile(r"(/tasks/[^/]+)?/events")
EXPOSED = (
    *("X-Workflow-ID", "X-Session-ID", "X-Trace-ID", "X-Span-ID", "X-Idempotency-Cached", "X-Idempotency-Key"),
    *("Retry-After", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
    *("X-RateLimit-Limit-Minute", "X-RateLimit-Remaining-Minute"),
    *("X-RateLimit-Limit-Hour", "X-RateLimit-Remaining-Hour"),
    *("ETag", "Location", "Age", "Link", "Preference-Applied", "Idempotency-Replayed", "RateLimit", "RateLimit-Policy"),
    *("WWW-Authenticate", "Tasktrail-Last-Sequence", "X-Request-ID"),
)
"""Headers that a page of another origin may read: all that its answers have and a client needs."""
VENDORS = (niyra_routes, shannon_routes, nanonets_routes)
"""The dialects that are not ours; each has `routes`, and its own words for errors."""


POLLS = (native_routes.POLL, *(vendor.POLL for vendor in VENDORS))
"""What is answered in front of the framework, where it can be."""


class Health(Struct):
    """Alive, or ready; and if not, why not."""

    status: str
    problems: list[str] = []


@get("/health/live", opt={"exclude_from_auth": True}, tags=["health"], security=[{}])
async def live() -> Health:
    """This process answers."""
    return Health(status="ok")


@get("/health/ready", opt={"exclude_from_auth": True}, tags=["health"], security=[{}])
async def ready(rooms: NamedDependency[Rooms]) -> Response[Health]:
    """The log can be reached, and this process has seen what it holds; else 503."""
    problems = rooms.problems
    status_code = 503 if problems else 200
    return Response(Health(status="unready" if problems else "ok", problems=problems), status_code=status_code)


@get("/metrics", opt={"exclude_from_auth": True}, tags=["health"], media_type=MediaType.TEXT, security=[{}])
async def metrics(request: Request[object, object, State], rooms: NamedDependency[Rooms]) -> Response[bytes]:
    """Prometheus metrics of the whole deployment: open on loopback, else scope `admin`."""
    if not _is_loopback(request):
        principal = await rooms.bearers.authenticate(credentials(request.headers))
        principal.need("admin")
    told = await rooms.figures.ask()
    told.pop(rooms.metrics.instance, None)  # our own are read last: they are there without NATS too
    text = exposition([*read_figures(told.values()), rooms.metrics.figures()])
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


class Authentication(AbstractAuthenticationMiddleware):
    """Every route needs a token, but for those that say otherwise."""

    def __init__(self, app: ASGIApp, bearers: Bearers) -> None:
        super().__init__(app, exclude=["^/docs"])
        self._bearers = bearers

    async def authenticate_request(self, connection: ASGIConnection) -> AuthenticationResult:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]  # litestar's own signature
        """Who asks. Raises NotAuthenticated."""
        secret = credentials(connection.headers, _token_in_query(connection))
        principal = await self._bearers.authenticate_once(connection.scope["state"], secret)
        return AuthenticationResult(user=principal, auth=None)


def on_error(request: Request[object, object, State], error: Exception) -> Response[bytes]:
    """Every error in the words of the API that it comes from; one that nobody expected is ours, and is logged."""
    path = str(request.scope["path"]).removeprefix(str(request.scope["root_path"]))
    if "route_handler" in request.scope:
        error = _in_our_words(error, request.scope["route_handler"])
    for vendor in VENDORS:
        if vendor.answers_for(path):
            return vendor.on_error(request, error)
    problem, headers = problem_of(error)
    if problem.status >= 500 and problem.code == "internal_error":
        log.error("http.fault", path=request.scope["path"], exc_info=error)
    return Response(encode(problem), status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)


def _in_our_words(error: Exception, handler: object) -> Exception:
    """What the framework found wrong with what a route was sent."""
    if not isinstance(handler, HTTPRouteHandler):
        return error
    most = handler.resolve_request_max_body_size()
    if isinstance(error, RequestEntityTooLarge) and most is not None:
        return over(most)
    return of_framework(error, handler.signature_model)


def build(rooms: Rooms) -> Front:
    """The ASGI application."""
    http = rooms.http
    read_in_line()

    def given(room: object) -> Provide:
        return Provide(lambda: room, sync_to_thread=False)

    app = Litestar(
        route_handlers=[
            native_routes.routes(),
            *(route for vendor in VENDORS for route in vendor.routes()),
            rooms.mcp.routes(),
            live,
            ready,
            metrics,
        ],
        dependencies={
            "rooms": given(rooms),
            "http": given(http),
            "tasks": given(rooms.tasks),
            "tokens": given(rooms.tokens),
            "bearers": given(rooms.bearers),
            "switches": given(rooms.switches),
            "lists": given(rooms.lists),
            "sessions": given(Sessions(rooms.tasks, rooms.lists)),
            "streams": given(rooms.streams),
            "feeds": given(rooms.feeds),
            "revocations": given(rooms.revocations),
            "catalogue": given(rooms.catalogue),
            "calls": given(rooms.calls),
            "signer": given(Signer(rooms.connection)),
        },
        middleware=[
            DefineMiddleware(Authentication, bearers=rooms.bearers),
            DefineMiddleware(Limiting, limits=rooms.limits),
            DefineMiddleware(Bounding, bounds=rooms.bounds),
        ],
        exception_handlers={Exception: on_error},
        cors_config=CORSConfig(allow_origins=list(http.cors_origins), expose_headers=list(EXPOSED))
        if http.cors_origins
        else None,
        request_max_body_size=http.max_body_bytes,
        plugins=[OurSchemas(rooms.catalogue.names)],
        openapi_config=OpenAPIConfig(
            title="Tasktrail",
            version=__version__,
            description="Long tasks for AI agents: start, wait, poll, stream, answer, cancel, and prove.",
            path="/docs",
            render_plugins=[ScalarRenderPlugin()],
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
        ),
        logging_config=None,
    )
    told = Tracing(Telling(app, rooms.limits, _told_elsewhere))
    layers = Observed(Heads(Crossroads(told, rooms.bearers)), rooms.metrics)
    return Front(Beginning(layers, rooms), rooms, POLLS)


def _told_elsewhere(path: str) -> Budget | None:
    """Niyra tells of a budget on every answer, also where no route is, and MCP's own; the others do not."""
    return "niyra.poll" if niyra_routes.answers_for(path) else None


def _token_in_query(connection: ASGIConnection) -> str | None:  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]  # as above
    """On streams only: whoever opens one may have no way to send a header."""
    path = str(connection.scope["path"]).removeprefix(str(connection.scope["root_path"]))
    query = connection.query_params
    if "method" not in connection.scope or connection.scope["method"] != "GET":
        return None
    if path.startswith(shannon_routes.STREAMS):
        return query_token(query)
    stream = OUR_STREAMS.fullmatch(path) is not None and EVENT_STREAM in connection.headers.get("accept", "")
    return query.get("token") if stream else None


def _is_loopback(request: Request[object, object, State]) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
