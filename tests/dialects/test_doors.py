"""Every route of our OpenAPI: who has no token, a wrong one, or one without the scope is told so in the dialect's
words, which are the same whatever is wrong with it; and what is another owner's reads as what there is not."""

import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import pytest
from msgspec import Struct

from app.auth import Principal
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from eventstore.tokens import SCOPES, Scope
from tests.api import DEV, Api, running
from tests.walk.issuer import Issuer, issuing

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
EVE = Owner("eve")

BODIES: dict[str, Json] = {
    "POST /admin/tokens": {"scopes": ["tasks:read"]},
    "PUT /admin/tools": {"tool": "x", "disabled": True},
    "POST /tasks": {},
    "POST /tasks/{task_id}/messages": {"text": "x"},
    "POST /tasks/{task_id}/review": {"approved": True},
    "POST /v1/public/execute": {"instruction": "x"},
    "POST /v1/public/ask": {"question": "x"},
}
"""What must be said for a request to be understood: a new route that takes a body has its line here."""
WORDS = {"niyra": ("error", "invalid_token", "insufficient_scope", "not_found")}
OURS = ("code", "not_authenticated", "not_allowed", "not_found")
"""By the tag of the route: which field says what is wrong, and how it says 401, 403 and 404."""


class Route(Struct, frozen=True, kw_only=True):
    """One operation of our OpenAPI, and the scope that the reference says it needs."""

    name: str
    tag: str
    scope: Scope

    def said(self, answer: httpx.Response) -> str:
        """The dialect's word for what is wrong."""
        return str(answer.json().get(WORDS.get(self.tag, OURS)[0]))

    async def ask(self, client: httpx.AsyncClient, headers: dict[str, str], **parts: str) -> httpx.Response:
        """A request that is right, but for who asks."""
        method, path = self.name.split()
        told = re.sub(r"{(\w+)}", lambda part: parts.get(part[1], f"task_{uuid4()}"), path)
        return await client.request(method, told, json=BODIES.get(self.name), headers=headers)


class Operation(Struct):
    """What we look at of one."""

    tags: list[str] = []
    security: list[dict[str, list[str]]] | None = None


async def all_routes(api: Api) -> list[Route]:
    """All but those that are open to everybody."""
    document = (await api.client.get("/docs/openapi.json")).json()
    paths = msgspec.convert(document["paths"], dict[str, dict[str, Operation]])
    told = dict(re.findall(r"^\| `([A-Z]+ /[^`]*)` \| `([^`|]+)` \|", PAGE.read_text(), re.M))
    found = {f"{method.upper()} {path}": one for path, methods in paths.items() for method, one in methods.items()}
    return [
        Route(name=name, tag=one.tags[0], scope=msgspec.convert(told[name], Scope))
        for name, one in found.items()
        if one.security != [{}]
    ]


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
    for route in await all_routes(api):
        for headers in wrong:
            refused = await route.ask(client, headers)
            assert (refused.status_code, refused.headers["WWW-Authenticate"][:6]) == (401, "Bearer"), route
            assert route.said(refused) == WORDS.get(route.tag, OURS)[1], route
            words = route.tag if route.tag in WORDS else "ours"
            bodies.setdefault(words, set()).add(refused.content)
    assert {words: len(said) for words, said in bodies.items()} == dict.fromkeys(("ours", *WORDS), 1)
    assert await api.arrivals() == []


def allows(scope: Scope, needed: Scope) -> bool:
    return Principal(owner=DEV, scopes=frozenset({scope}), token_id="", token_hash="").may(needed)


async def test_every_route_needs_the_scope_that_the_reference_names_and_no_more(api: Api, client: httpx.AsyncClient):
    for number, route in enumerate(await all_routes(api)):
        others: list[Scope] = [scope for scope in SCOPES if not allows(scope, route.scope)]
        await api.rooms.tokens.add(f"tt_less_{number}", DEV, tuple(others))
        await api.rooms.tokens.add(f"tt_enough_{number}", DEV, (route.scope,))
        refused = await route.ask(client, bearer(f"tt_less_{number}"))
        assert (refused.status_code, route.said(refused)) == (403, WORDS.get(route.tag, OURS)[2]), (route, refused.text)
        assert route.scope in refused.text
        if route.name != "POST /admin/tokens":  # it grants what its maker has
            granted = await route.ask(client, bearer(f"tt_enough_{number}"))
            assert granted.status_code not in (401, 403), (route, granted.text)


async def test_what_is_another_owners_reads_as_what_there_is_not(api: Api, client: httpx.AsyncClient):
    task_id = await api.begin()
    token_id = (await api.rooms.tokens.add("tt_other", DEV, ("tasks:read",))).id
    await api.rooms.tokens.add("tt_eve", EVE, ("admin",))
    routes = [route for route in await all_routes(api) if re.search(r"{(task|token)_id}", route.name)]
    assert routes
    for route in routes:
        foreign = await route.ask(client, bearer("tt_eve"), task_id=task_id, token_id=token_id)
        unknown = await route.ask(client, bearer("tt_eve"))
        assert (foreign.status_code, route.said(foreign)) == (404, WORDS.get(route.tag, OURS)[3]), route
        assert foreign.content == unknown.content, route
        volatile = {"x-request-id", "date"}
        assert foreign.headers.keys() - volatile == unknown.headers.keys() - volatile
    assert len(await api.arrivals()) == 1
    assert (await api.client.get("/agents", headers=bearer("tt_other"))).status_code == 200
