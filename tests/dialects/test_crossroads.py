"""Where Nanonets and Shannon share paths: whose a path is, and what the credential decides."""

from typing import NoReturn
from urllib.parse import unquote

import pytest
from litestar.types import Message, Receive, Scope, Send

from app.auth import Bearers, Header
from app.dialects.crossroads import Crossroads, Vendor, asked_path, claimed, meant
from eventstore.events import Owner
from eventstore.tokens import Dialect, Tokens
from tests.api import Api

ID = "f1c2a3b4-0000-4000-8000-000000000000"
BOTH = [
    ("GET", "/api/v1/tasks"),
    ("HEAD", "/api/v1/tasks"),
    ("OPTIONS", "/api/v1/tasks"),
    ("DELETE", "/api/v1/tasks"),
    ("GET", "/api/v1/tasks/"),
    ("GET", f"/api/v1/tasks/{ID}"),
    ("HEAD", f"/api/v1/tasks/{ID}"),
    ("GET", "/api/v1/tasks/stream"),
    ("POST", f"/api/v1/tasks/{ID}/cancel"),
    ("GET", f"/api/v1/tasks/{ID}/cancel"),
    ("GET", "/api/v1/agents"),
    ("GET", f"/api/v1/agents/{ID}"),
]
NANONETS = [
    ("POST", "/api/v1/agents/simulator/run"),
    ("GET", "/api/v1/agents/simulator/run"),
    ("GET", f"/api/v1/tasks/{ID}/summary"),
    ("GET", f"/api/v1/tasks/{ID}/result"),
    ("GET", f"/api/v1/tasks/{ID}/messages"),
    ("POST", f"/api/v1/tasks/{ID}/message"),
    ("OPTIONS", f"/api/v1/tasks/{ID}/message"),
    ("GET", "/v1/tasks"),
    ("POST", "/v1/tasks"),
    ("GET", f"/v1/tasks/{ID}"),
    ("GET", f"/v1/tasks/{ID}/nothing"),
    ("POST", "/v1/agents/simulator/run"),
    ("GET", "/v1/agents"),
]
SHANNON = [
    ("POST", "/api/v1/tasks"),
    ("POST", "/api/v1/tasks/stream"),
    ("POST", f"/api/v1/agents/{ID}"),
    *(("GET", f"/api/v1/tasks/{ID}/{what}") for what in ("stream", "events", "timeline", "control-state", "review")),
    *(("POST", f"/api/v1/tasks/{ID}/{what}") for what in ("pause", "resume", "review")),
    ("POST", "/api/v1/approvals/decision"),
    ("POST", f"/api/v1/swarm/{ID}/message"),
    ("GET", "/api/v1/stream/sse"),
    ("GET", "/api/v1/stream/ws"),
    ("GET", "/api/v1/blob/key"),
    ("GET", "/api/v1/sessions"),
    ("PATCH", f"/api/v1/sessions/{ID}"),
    ("GET", f"/api/v1/sessions/{ID}/history"),
    ("GET", "/api/v1/schedules"),
    ("GET", "/api/v1/skills"),
    ("GET", "/api/v1"),
    ("GET", f"/api/v1/tasks/{ID}/nothing/at/all"),
    ("GET", "/health"),
    ("GET", "/readiness"),
    ("GET", "/openapi.json"),
]
NOBODYS = [
    "/",
    "/tasks",
    f"/tasks/{ID}",
    "/agents",
    "/events",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/docs",
    "/docs/openapi.json",
    "/v1",
    "/v1/public/execute",
    f"/v1/public/tasks/{ID}",
    "/v1/taskss",
    "/api",
    "/api/v2/tasks",
    "/apis/v1/tasks",
    "/niyra/v1/public/ask",
    "/nanonets/api/v1/tasks",
    "/shannon/api/v1/tasks",
    "/shannon/health",
]


def test_a_route_is_the_vendors_that_has_it_and_both_have_some():
    assert {route: claimed(*route) for route in BOTH} == dict.fromkeys(BOTH, "both")
    assert {route: claimed(*route) for route in NANONETS} == dict.fromkeys(NANONETS, "nanonets")
    assert {route: claimed(*route) for route in SHANNON} == dict.fromkeys(SHANNON, "shannon")


def test_nothing_of_ours_and_nothing_of_niyras_is_hidden():
    assert {path: claimed(method, path) for path in NOBODYS for method in ("GET", "POST")} == dict.fromkeys(NOBODYS)


@pytest.mark.parametrize(
    ("header", "named", "vendor"),
    [
        ("key", None, "shannon"),
        ("bearer", None, "nanonets"),
        ("bearer", "shannon", "shannon"),
        ("key", "nanonets", "nanonets"),
        ("bearer", "niyra", "nanonets"),
        ("key", "native", "shannon"),
        (None, None, "shannon"),
    ],
)
def test_the_credential_says_whose_words_are_meant_unless_the_token_does(
    header: Header | None, named: Dialect | None, vendor: Vendor
):
    assert meant(header, named) == vendor


async def sent(tokens: Tokens, kind: str, path: str, root_path: str = "", **headers: str) -> tuple[str, str]:
    """The path under which a request arrives behind the layer, and the one that a log shows."""
    arrived: list[Scope] = []

    async def behind(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        arrived.append(scope)

    async def receive() -> NoReturn:
        raise AssertionError("the layer reads no body")

    async def send(message: Message) -> None:
        raise AssertionError("the layer answers nothing")

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asked: dict[str, object] = {
        "type": kind,
        "path": unquote(path),
        "root_path": root_path,
        "headers": given,
        "state": {},
    }
    asked["raw_path"] = path.encode()
    if kind == "http":
        asked["method"] = "GET"
    await Crossroads(behind, Bearers(tokens, None))(asked, receive, send)  # pyright: ignore[reportArgumentType]  # only what it reads
    (scope,) = arrived
    assert asked["path"] == unquote(path), "what is around the layer sees what was asked for"
    return scope["path"], asked_path(scope)


async def test_a_bare_path_arrives_under_the_prefix_of_whoever_is_meant(api: Api):
    tokens, path = api.rooms.tokens, f"/api/v1/tasks/{ID}"
    await tokens.add("sk_shannon", Owner("dev"), ("tasks:read",), dialect="shannon")
    await tokens.add("sk_nanonets", Owner("dev"), ("tasks:read",), dialect="nanonets")
    bearer, shannon = f"Bearer {api.token}", "Bearer sk_shannon"
    assert await sent(tokens, "http", path, authorization=bearer) == (f"/nanonets{path}", path)
    assert await sent(tokens, "http", path, x_api_key=api.token) == (f"/shannon{path}", path)
    assert await sent(tokens, "http", path, x_api_key=api.token, authorization=bearer) == (f"/shannon{path}", path)
    assert await sent(tokens, "http", path, authorization=shannon) == (f"/shannon{path}", path)
    assert await sent(tokens, "http", path, x_api_key="sk_nanonets") == (f"/nanonets{path}", path)
    assert await sent(tokens, "http", path, authorization="Bearer nobody's") == (f"/nanonets{path}", path)
    assert await sent(tokens, "http", path, authorization="Basic eDp5") == (f"/shannon{path}", path)
    assert await sent(tokens, "http", path, x_api_key="", authorization=bearer) == (f"/nanonets{path}", path)
    assert await sent(tokens, "http", f"{path}/summary", authorization=shannon) == (
        f"/nanonets{path}/summary",
        f"{path}/summary",
    )


async def test_a_session_arrives_by_its_name_as_it_was_written(api: Api):
    tokens = api.rooms.tokens
    for name in ("a%2Fb", "%252F", "plain"):
        for bare in (f"/api/v1/sessions/{name}", f"/api/v1/sessions/{name}/history"):
            for path in (bare, f"/shannon{bare}"):
                arrived, _ = await sent(tokens, "http", path)
                assert arrived == f"/shannon{bare}"


async def test_the_layer_knows_sockets_and_the_path_that_it_is_mounted_under(api: Api):
    tokens, bearer = api.rooms.tokens, f"Bearer {api.token}"
    socket = "/api/v1/stream/ws"
    assert await sent(tokens, "websocket", socket, authorization=bearer) == (f"/shannon{socket}", socket)
    mounted, inner = f"/behind/api/v1/tasks/{ID}", f"/api/v1/tasks/{ID}"
    assert await sent(tokens, "http", mounted, "/behind", authorization=bearer) == (f"/behind/nanonets{inner}", mounted)
    assert await sent(tokens, "http", "/behind/tasks", "/behind") == ("/behind/tasks", "/behind/tasks")
