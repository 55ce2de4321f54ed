"""What Shannon says of itself, under `/shannon`, to whoever asks: its health, and which routes it has."""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.types import ControllerRouterHandler
from msgspec import Struct

from app import __version__
from app.dialects.shannon import Refused
from app.dialects.shannon_asked import answer
from app.tasks import Tasks

OPEN: dict[str, object] = {"exclude_from_auth": True}
Refs = dict[type[Struct], dict[str, object]]


class Health(Struct, kw_only=True):
    """How it is."""

    status: str
    version: str
    time: datetime
    checks: dict[str, str]


@get("/health", opt=OPEN | {"tells": Health})
async def health() -> Response[bytes]:
    """This process answers."""
    return answer(_health("healthy", {"gateway": "ok"}))


@get("/readiness", opt=OPEN | {"tells": Health})
async def readiness(tasks: NamedDependency[Tasks]) -> Response[bytes]:
    """The log can be reached, and this process has seen what it holds; else 503."""
    if tasks.tail.proven:
        return answer(_health("ready", {"orchestrator": "ok"}))
    return answer(_health("not ready", {"orchestrator": "not proven to have seen all of the log"}), 503)


def description(handlers: Iterable[ControllerRouterHandler]) -> bytes:
    """The routes, in OpenAPI's words. `opt` of a route says what it `asks` for and `tells`, where that is a struct."""
    routes = [one for one in handlers if isinstance(one, HTTPRouteHandler)]
    shapes = sorted(
        {shape for one in routes for shape in _shapes(one).values()} | {Refused}, key=lambda one: one.__name__
    )
    schemas, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    refs: Refs = dict(zip(shapes, schemas, strict=True))
    paths: dict[str, dict[str, object]] = {}
    for one in routes:
        for path in sorted(one.paths):
            for method in one.http_methods - {"HEAD", "OPTIONS"}:
                paths.setdefault(path.replace(":str}", "}"), {})[method.lower()] = _operation(one, path, refs)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Tasktrail, as Shannon's clients speak to it", "version": __version__},
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                    "bearer": {"type": "http", "scheme": "bearer"},
                },
            },
            "security": [{"key": []}, {"bearer": []}],
        }
    )


def _operation(route: HTTPRouteHandler, path: str, refs: Refs) -> dict[str, object]:
    def of(shape: type[Struct] | None) -> dict[str, object]:
        return {} if shape is None else {"content": {"application/json": {"schema": refs[shape]}}}

    shapes = _shapes(route)
    done: dict[str, object] = {"description": "done"} | of(shapes.get("tells"))
    refused: dict[str, object] = {"description": "refused"} | of(Refused)
    operation: dict[str, object] = {
        "summary": (route.fn.__doc__ or "").split("\n")[0],
        "responses": {str(route.status_code): done, "default": refused},
    }
    names = [part[1:].split(":")[0] for part in path.split("/") if part.startswith("{")]
    if names:
        schema = {"type": "string"}
        operation["parameters"] = [{"name": one, "in": "path", "required": True, "schema": schema} for one in names]
    if "asks" in shapes:
        operation["requestBody"] = of(shapes["asks"])
    if route.opt.get("exclude_from_auth"):
        operation["security"] = [{}]
    return operation


def _shapes(route: HTTPRouteHandler) -> dict[str, type[Struct]]:
    said = ((name, route.opt.get(name)) for name in ("asks", "tells"))
    return {name: shape for name, shape in said if isinstance(shape, type) and issubclass(shape, Struct)}


def _health(status: str, checks: dict[str, str]) -> Health:
    return Health(status=status, version=__version__, time=datetime.now(UTC), checks=checks)
