"""Every route that there is, every dialect's among them: who has no token, a wrong one, or one without the scope is
told so in the dialect's words, which are the same whatever is wrong with it; and what is another owner's reads as what
there is not."""

import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

import httpx
import msgspec
import pytest
from litestar.routes import ASGIRoute, HTTPRoute, WebSocketRoute
from msgspec import Struct
from websockets import InvalidStatus, connect

from app.auth import Principal
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from eventstore.tokens import SCOPES, Scope
from tests.api import DEV, Api, running
from tests.dialects.routes import litestar_of
from tests.dialects.test_niyra_mcp import BY_HAND
from tests.walk.issuer import Issuer, issuing

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
EVE = Owner("eve")
Words = Literal["native", "niyra", "shannon", "nanonets"]

BODIES: dict[str, Json] = {
    "POST /admin/tokens": {"scopes": ["tasks:read"]},
    "PUT /admin/tools": {"tool": "x", "disabled": True},
    "POST /tasks": {},
    "POST /tasks/{task_id}/messages": {"text": "x"},
    "POST /tasks/{task_id}/review": {"approved": True},
    "POST /v1/public/execute": {"instruction": "x"},
    "POST /v1/public/ask": {"question": "x"},
    "POST /niyra/v1/public/execute": {"instruction": "x"},
    "POST /niyra/v1/public/ask": {"question": "x"},
    "POST /mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    "POST /niyra/mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
    "POST /shannon/api/v1/tasks": {"query": "x"},
    "POST /shannon/api/v1/tasks/stream": {"query": "x"},
    "POST /shannon/api/v1/tasks/{task_id}/review": {"action": "approve"},
    "POST /shannon/api/v1/approvals/decision": {"workflow_id": f"task_{uuid4()}", "approval_id": "approval-1"},
    "POST /shannon/api/v1/swarm/{task_id}/message": {"message": "x"},
    "PATCH /shannon/api/v1/sessions/{session_id}": {"title": "x"},
    "POST /nanonets/api/v1/agents/{agent}/run": {"query": "x"},
    "POST /nanonets/api/v1/tasks/{task_id}/message": {"message": "x"},
    "POST /nanonets/v1/agents/{agent}/run": {"query": "x"},
    "POST /nanonets/v1/tasks/{task_id}/message": {"message": "x"},
}
"""What must be said for a request to be understood: a new route that takes a body has its line here."""
PARTS = {"agent": "simulator", "sha256": "0" * 64}
BY_QUERY = {"GET /shannon/api/v1/stream/sse", "WS /shannon/api/v1/stream/ws"}
"""They name their task in the query."""
LEADS_ON = "GET /shannon/api/v1/tasks/{task_id}/stream"
"""It looks for no task: where it leads does."""
CODES: dict[Words, tuple[str, dict[int, str]]] = {
    "native": ("code", {401: "not_authenticated", 403: "not_allowed", 404: "not_found"}),
    "niyra": ("error", {401: "invalid_token", 403: "insufficient_scope", 404: "not_found"}),
    "shannon": ("error", {401: "Unauthorized"}),
    "nanonets": ("error", {401: "A valid token is needed", 404: "no such task"}),
}
"""Which field says what is wrong, and how. Where a status is not named the vendor has a text of its own for each."""


class Route(Struct, frozen=True, kw_only=True):
    """One of the application's own route table."""

    name: str
    words: Words
    scope: Scope | None

    @property
    def names_a_task(self) -> bool:
        return self.name in BY_QUERY or (re.search(r"{(task|token)_id}", self.name) is not None)

    def is_refusal(self, answer: httpx.Response, status: int) -> None:
        """It is told in the dialect's words, and in its shape."""
        assert answer.status_code == status, (self, answer.text)
        field, codes = CODES[self.words]
        body = msgspec.json.decode(answer.content, type=dict[str, object])
        assert body[field] == codes.get(status, body[field]), self
        if self.words in ("shannon", "nanonets"):
            assert body.keys() == {"error"}
            assert answer.headers["Content-Type"] == "application/json"

    async def ask(self, client: httpx.AsyncClient, headers: dict[str, str], **parts: str) -> httpx.Response:
        """A request that is right, but for who asks."""
        method, path = self.name.split()
        told = re.sub(r"{(\w+)}", lambda part: parts.get(part[1]) or PARTS.get(part[1], f"task_{uuid4()}"), path)
        if self.name in BY_QUERY:
            told += f"?workflow_id={parts.get('task_id', f'task_{uuid4()}')}"
        if method == "WS":
            return await opened(f"{client.base_url}".replace("http", "ws", 1).rstrip("/") + told, headers)
        by_hand = BY_HAND if path.endswith("/mcp") else {}
        return await client.request(method, told, json=BODIES.get(self.name), headers=headers | by_hand)


async def opened(url: str, headers: dict[str, str]) -> httpx.Response:
    """What a socket is answered."""
    try:
        async with connect(url, additional_headers=headers):
            return httpx.Response(101)
    except InvalidStatus as refused:
        told = refused.response
        return httpx.Response(told.status_code, headers=list(told.headers.raw_items()), content=bytes(told.body or b""))


def all_routes(api: Api) -> list[Route]:
    """All but those that are open to everybody."""
    scopes = dict(re.findall(r"^\| `([A-Z]+ /[^`]*)` \| `([^`|]+)` \|", PAGE.read_text(), re.M))
    found: list[Route] = []
    for route in litestar_of(api).routes:
        for method in methods_of(route):
            name = f"{method} {route.path_format}"
            words = words_of(route.path_format)
            # The vendors' pages say: reading needs the one, the rest the other.
            usual = "tasks:read" if method in ("GET", "WS") else "tasks:write"
            scope = scopes.get(name.replace(" /niyra", " "), None if words in ("native", "niyra") else usual)
            found.append(Route(name=name, words=words, scope=scope and msgspec.convert(scope, Scope)))
    return found


def methods_of(route: HTTPRoute | ASGIRoute | WebSocketRoute) -> list[str]:
    if route.path.startswith("/docs"):
        return []
    match route:
        case HTTPRoute(route_handlers=handlers):
            closed = [one for one in handlers if not one.opt.get("exclude_from_auth")]
            return sorted({str(method) for one in closed for method in one.http_methods} - {"OPTIONS", "HEAD"})
        case ASGIRoute():
            return ["POST"]
        case WebSocketRoute():
            return ["WS"]


def words_of(path: str) -> Words:
    """Whose words are expected there."""
    if path.startswith(("/niyra", "/v1/public", "/mcp")):
        return "niyra"
    return "shannon" if path.startswith("/shannon") else "nanonets" if path.startswith("/nanonets") else "native"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def issuer() -> AsyncGenerator[Issuer]:
    async with issuing() as issuer:
        yield issuer


@pytest.fixture
async def api(nats_address: NatsAddress, issuer: Issuer) -> AsyncGenerator[Api]:
    """An API that takes an issuer's tokens too, and whose tasks nobody works on."""
    http = HttpSettings(niyra_execute_window_s=0.1, niyra_ask_window_s=0.1, oauth=issuer.settings)
    async with running(nats_address, http=http) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> AsyncGenerator[httpx.AsyncClient]:
    """One that has no token of its own."""
    async with httpx.AsyncClient(base_url=api.url) as client:
        yield client


async def test_a_wrong_token_of_whatever_kind_is_told_the_same(api: Api, client: httpx.AsyncClient, issuer: Issuer):
    past = datetime.now(UTC) - timedelta(seconds=1)
    await api.rooms.tokens.add("tt_expired", DEV, SCOPES, expires_at=past)
    revoked = await api.rooms.tokens.add("tt_revoked", DEV, SCOPES)
    await api.rooms.tokens.revoke(revoked.id)
    wrong: list[dict[str, str]] = [{}, {"X-API-Key": "tt_unknown"}, {"Authorization": "Basic dHQ6ZGV2"}]
    wrong += [bearer("tt_expired"), bearer("tt_revoked"), bearer(issuer.token(aud="others")), bearer("a.b.c")]
    wrong += [bearer(issuer.token(exp=1)), bearer(issuer.token()[:-4])]
    bodies: dict[str, set[bytes]] = {}
    for route in all_routes(api):
        for headers in wrong:
            refused = await route.ask(client, headers)
            route.is_refusal(refused, 401)
            assert refused.headers["WWW-Authenticate"].startswith("Bearer"), route
            bodies.setdefault(route.words, set()).add(refused.content)
    assert {words: len(said) for words, said in bodies.items()} == dict.fromkeys(CODES, 1)
    assert await api.arrivals() == []


def allows(scope: Scope, needed: Scope) -> bool:
    return Principal(owner=DEV, scopes=frozenset({scope}), token_id="", token_hash="").may(needed)


async def test_every_route_needs_the_scope_that_the_reference_names_and_no_more(api: Api, client: httpx.AsyncClient):
    for number, route in enumerate(all_routes(api)):
        if route.scope is None:  # a tool's: test_each_tool_needs_its_scope
            assert route.name.endswith("/mcp")
            continue
        others: list[Scope] = [scope for scope in SCOPES if not allows(scope, route.scope)]
        await api.rooms.tokens.add(f"tt_less_{number}", DEV, tuple(others))
        await api.rooms.tokens.add(f"tt_enough_{number}", DEV, (route.scope,))
        refused = await route.ask(client, bearer(f"tt_less_{number}"))
        route.is_refusal(refused, 403)
        assert route.scope in refused.text
        if route.name != "POST /admin/tokens":  # it grants what its maker has
            granted = await route.ask(client, bearer(f"tt_enough_{number}"))
            assert granted.status_code not in (401, 403), (route, granted.text)


async def test_what_is_another_owners_reads_as_what_there_is_not(api: Api, client: httpx.AsyncClient):
    task_id = await api.begin()
    token_id = (await api.rooms.tokens.add("tt_other", DEV, ("tasks:read",))).id
    await api.rooms.tokens.add("tt_eve", EVE, ("admin",))
    routes = [route for route in all_routes(api) if route.names_a_task and route.name != LEADS_ON]
    assert {route.words for route in routes} == CODES.keys()
    for route in routes:
        foreign = await route.ask(client, bearer("tt_eve"), task_id=task_id, token_id=token_id)
        unknown = await route.ask(client, bearer("tt_eve"))
        route.is_refusal(foreign, 404)
        assert foreign.content == unknown.content, route
        volatile = {"x-request-id", "date", "x-trace-id", "x-span-id"}
        assert foreign.headers.keys() - volatile == unknown.headers.keys() - volatile
    assert len(await api.arrivals()) == 1
    assert (await api.client.get("/agents", headers=bearer("tt_other"))).status_code == 200
