"""Administration over HTTP: whose tokens and tools one may rule, what one may grant, and what nobody is told."""

import asyncio
from datetime import UTC, datetime, timedelta

import httpx
import msgspec

from app.dialects.native_admin import MAX_OF_ONE
from eventstore.events import Json, Owner
from eventstore.log import owner_named, owner_word
from eventstore.tokens import LIMIT_NAMES, SCOPES, Plan, Scope
from tests.api import DEV, Api

TOKENS, TOOLS = "/admin/tokens", "/admin/tools"
READS: dict[str, Json] = {"scopes": ["tasks:read"]}


async def bearer(api: Api, owner: str, *scopes: Scope) -> dict[str, str]:
    """A token of this owner's with these scopes, as a header."""
    token = f"tt_{owner}_{'_'.join(scopes)}"
    await api.rooms.tokens.add(token, Owner(owner), scopes)
    return {"Authorization": f"Bearer {token}"}


def is_problem(answer: httpx.Response, status: int, code: str) -> str:
    body: dict[str, str] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    return body["detail"]


async def test_a_token_is_made_shown_once_listed_and_revoked(api: Api):
    wanted = {"scopes": ["tasks:write", "tasks:read"], "expires_in_s": 3600, "dialect": "shannon", "note": "for ci"}
    before = datetime.now(UTC)
    answer = await api.client.post(TOKENS, json=wanted)
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    made = answer.json()
    secret = made.pop("token")
    known = {
        "id",
        "owner",
        "scopes",
        "created_at",
        "expires_at",
        "dialect",
        "note",
        "multiplier",
        "unlimited",
        "limits",
    }
    assert made.keys() == known
    assert (made["owner"], made["scopes"], made["dialect"]) == ("dev", ["tasks:read", "tasks:write"], "shannon")
    lasts = datetime.fromisoformat(made["expires_at"]) - before
    assert timedelta(seconds=3600) <= lasts < timedelta(seconds=3700)

    its = {"Authorization": f"Bearer {secret}"}
    assert (await api.client.get("/tasks/x", headers=its)).status_code == 404
    listed = await api.client.get(TOKENS)
    assert listed.json()["data"][1:] == [made]
    assert secret not in listed.text

    assert (await api.client.delete(f"{TOKENS}/{made['id']}")).status_code == 204
    assert (await api.client.get("/tasks/x", headers=its)).status_code == 401
    is_problem(await api.client.delete(f"{TOKENS}/{made['id']}"), 404, "not_found")
    assert len((await api.client.get(TOKENS)).json()["data"]) == 1


async def test_an_admin_rules_its_own_owner_and_nobody_else(api: Api):
    ann, bob = await bearer(api, "ann", "admin"), await bearer(api, "bob", "admin")
    made = (await api.client.post(TOKENS, json=READS | {"owner": "ann"}, headers=ann)).json()
    assert made["owner"] == "ann"
    for answer in (
        await api.client.post(TOKENS, json=READS | {"owner": "ann"}, headers=bob),
        await api.client.post(TOKENS, json=READS | {"owner": "nobody"}, headers=bob),
        await api.client.get(TOKENS, params={"owner": "ann"}, headers=bob),
        await api.client.get(TOKENS, params={"owner": "nobody"}, headers=bob),
        await api.client.get(TOOLS, params={"owner": "ann"}, headers=bob),
        await api.client.put(TOOLS, json={"owner": "ann", "tool": "x", "disabled": True}, headers=bob),
    ):
        assert "admin:all" in is_problem(answer, 403, "not_allowed")
    foreign = await api.client.delete(f"{TOKENS}/{made['id']}", headers=bob)
    is_problem(foreign, 404, "not_found")
    assert foreign.content == (await api.client.delete(f"{TOKENS}/000000000000", headers=bob)).content
    assert {one["owner"] for one in (await api.client.get(TOKENS, headers=bob)).json()["data"]} == {"bob"}
    assert [one["owner"] for one in (await api.client.get(TOKENS, headers=ann)).json()["data"]] == ["ann", "ann"]
    assert (await api.client.delete(f"{TOKENS}/{made['id']}", headers=ann)).status_code == 204


async def test_nobody_grants_what_they_do_not_have(api: Api):
    ann = await bearer(api, "ann", "admin")
    own = [scope for scope in SCOPES if not scope.endswith(":all")]
    assert (await api.client.post(TOKENS, json={"scopes": own}, headers=ann)).status_code == 201
    for scope in ("audit:all", "admin:all"):
        refused = await api.client.post(TOKENS, json={"scopes": ["tasks:read", scope]}, headers=ann)
        assert scope in is_problem(refused, 403, "not_allowed")
    ops = await bearer(api, "ops", "admin:all")
    assert (await api.client.post(TOKENS, json={"scopes": [*own, "admin:all"]}, headers=ops)).status_code == 201
    is_problem(await api.client.post(TOKENS, json={"scopes": ["audit:all"]}, headers=ops), 403, "not_allowed")
    assert len((await api.client.get(TOKENS, headers=ann)).json()["data"]) == 2


async def test_only_who_rules_all_makes_plans(api: Api):
    ops, ann = await bearer(api, "ops", "admin:all"), await bearer(api, "ann", "admin")
    limits: dict[str, Json] = dict.fromkeys(LIMIT_NAMES, 7)
    plans: list[dict[str, Json]] = [{"multiplier": 5}, {"unlimited": True}, {"limits": limits}]
    for plan in plans:
        is_problem(await api.client.post(TOKENS, json=READS | plan, headers=ann), 403, "not_allowed")
        made = (await api.client.post(TOKENS, json=READS | plan | {"owner": "ann"}, headers=ops)).json()
        assert {name: made[name] for name in plan} == plan
        found = await api.rooms.tokens.find(made["token"])
        assert found is not None
        assert found.plan == msgspec.convert(plan, Plan)
    usual: dict[str, Json] = {"multiplier": 1, "unlimited": False, "limits": {}}
    assert (await api.client.post(TOKENS, json=READS | usual, headers=ann)).status_code == 201


async def test_who_rules_all_rules_each_owner(api: Api):
    ops = await bearer(api, "ops", "admin:all")
    made = (await api.client.post(TOKENS, json=READS | {"owner": "Ann.B"}, headers=ops)).json()
    word = owner_word("Ann.B")
    assert made["owner"] == word
    for owner in ("Ann.B", word):
        one = (await api.client.get(TOKENS, params={"owner": owner}, headers=ops)).json()["data"]
        assert [token["id"] for token in one] == [made["id"]]
    everybodys = (await api.client.get(TOKENS, headers=ops)).json()["data"]
    assert {token["owner"] for token in everybodys} == {"dev", "ops", word}
    assert (await api.client.delete(f"{TOKENS}/{made['id']}", headers=ops)).status_code == 204
    hers = await bearer(api, word, "admin")
    assert (await api.client.get(TOOLS, params={"owner": word}, headers=hers)).status_code == 200


async def test_a_token_does_not_lock_its_bearer_out(api: Api):
    mine = (await api.client.get(TOKENS)).json()["data"][0]["id"]
    is_problem(await api.client.delete(f"{TOKENS}/{mine}"), 409, "own_token")
    assert (await api.client.get(TOKENS)).status_code == 200
    other = {"Authorization": f"Bearer {(await api.client.post(TOKENS, json={'scopes': ['admin']})).json()['token']}"}
    assert (await api.client.delete(f"{TOKENS}/{mine}", headers=other)).status_code == 204
    assert (await api.client.get(TOKENS)).status_code == 401


async def test_no_other_scope_administers(api: Api):
    others: list[Scope] = [scope for scope in SCOPES if not scope.startswith("admin")]
    headers = await bearer(api, "ann", *others)
    for method, path, body in (
        ("POST", TOKENS, READS),
        ("GET", TOKENS, None),
        ("DELETE", f"{TOKENS}/x", None),
        ("GET", TOOLS, None),
        ("PUT", TOOLS, {"tool": "x", "disabled": True}),
    ):
        refused = await api.client.request(method, path, json=body, headers=headers)
        assert is_problem(refused, 403, "not_allowed") == "this needs a token with scope admin"


async def test_an_admin_of_its_own_signs_no_checkpoint(api: Api):
    refused = await api.client.post("/checkpoints", headers=await bearer(api, "ann", "admin"))
    assert "audit:all" in is_problem(refused, 403, "not_allowed")


MISTAKES: list[tuple[str, Json]] = [
    (TOKENS, {}),
    (TOKENS, {"scopes": []}),
    (TOKENS, {"scopes": ["tasks:reed"]}),
    (TOKENS, {"scopes": "tasks:read"}),
    (TOKENS, {"scopes": ["tasks:read"] * 50}),
    (TOKENS, READS | {"expires_in_s": 0}),
    (TOKENS, READS | {"expires_in_s": "60"}),
    (TOKENS, READS | {"expires_in_s": 10**12}),
    (TOKENS, READS | {"dialect": "french"}),
    (TOKENS, READS | {"owner": ""}),
    (TOKENS, READS | {"owner": "x" * 149}),
    (TOKENS, READS | {"owner": "é" * 100}),
    (TOKENS, READS | {"note": "x" * 201}),
    (TOKENS, READS | {"unlimited_power": True}),
    (TOKENS, READS | {"multiplier": 0}),
    (TOKENS, READS | {"unlimited": 1}),
    (TOKENS, READS | {"limits": {"niyra_ask": 5}}),
    (TOKENS, READS | {"limits": {"native": None}}),
    (TOKENS, []),
    (TOOLS, {"tool": "x"}),
    (TOOLS, {"tool": "", "disabled": True}),
    (TOOLS, {"tool": "x" * 513, "disabled": True}),
    (TOOLS, {"tool": "x", "disabled": 1}),
]


async def test_what_is_asked_wrongly_makes_nothing(api: Api):
    for path, body in MISTAKES:
        method = "POST" if path == TOKENS else "PUT"
        is_problem(await api.client.request(method, path, json=body), 400, "bad_request")
    assert len(await api.rooms.tokens.all()) == 1
    assert await api.rooms.switches.all(Owner("dev")) == []


async def test_a_tool_is_switched_off_and_on(api: Api):
    name = "mail/send: *.>"
    off = await api.client.put(TOOLS, json={"tool": name, "disabled": True})
    assert off.status_code == 200
    assert off.json() | {"since": None} == {"owner": "dev", "tool": name, "disabled": True, "since": None}
    again = await api.client.put(TOOLS, json={"tool": name, "disabled": True})
    assert again.json() == off.json()
    assert (await api.client.get(TOOLS)).json() == {"data": [off.json()]}
    assert await api.rooms.switches.disabled(Owner("dev"), name)
    for _ in range(2):
        on = await api.client.put(TOOLS, json={"tool": name, "disabled": False})
        assert on.json() == {"owner": "dev", "tool": name, "disabled": False, "since": None}
    assert (await api.client.get(TOOLS)).json() == {"data": []}


async def test_one_owner_fills_nobodys_memory(api: Api):
    dev, rooms = Owner("dev"), api.rooms
    some_at_once = asyncio.Semaphore(20)

    async def fill(n: int) -> None:
        async with some_at_once:
            await rooms.tokens.add(f"tt_{n}", dev, ("tasks:read",))
            await rooms.switches.disable(dev, f"tool-{n}")

    await asyncio.gather(*map(fill, range(MAX_OF_ONE - 1)))
    is_problem(await api.client.post(TOKENS, json=READS), 409, "too_many")
    assert (await api.client.post(TOKENS, json=READS | {"owner": "ann"})).status_code == 201
    for name, status in (("a", 200), ("b", 409), ("a", 200)):
        assert (await api.client.put(TOOLS, json={"tool": name, "disabled": True})).status_code == status


def test_an_owner_is_meant_by_name_or_by_the_word_that_lists_show():
    for name in ("ann", "Ann.B", "auth0|123", "x-men", "x-", "é", owner_word("x-men")):
        assert owner_named(owner_word(name)) == owner_word(name)
    assert owner_named("x-men") == owner_word("x-men") != "x-men"
    assert owner_named("x-mfra") == owner_word("x-mfra")  # base32 of "ab", which needs none


async def test_whoever_was_given_less_gives_no_more(api: Api):
    await api.rooms.tokens.add("tt_poor", DEV, ("admin",), plan=Plan(limits={"native": 1_000}))
    made = await api.client.post(TOKENS, json={"scopes": ["tasks:read"]}, headers={"Authorization": "Bearer tt_poor"})
    assert (made.status_code, made.json()["limits"]["native"]) == (201, 1_000)
