"""Niyra's errors: one flat envelope for whatever goes wrong on its paths, and no word of what is another owner's."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from app.dialects.niyra import refusal_of
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from eventstore.log import LogFull, LogUnavailable, OutcomeUnknown
from eventstore.tokens import Scope
from projections.views_errors import ViewsUnavailable
from tests.api import Api, running
from tests.dialects.niyra import ASK, EXECUTE, TASKS

AT_ONCE = 0.1


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    """An API whose tasks nobody works on."""
    http = HttpSettings(niyra_execute_window_s=AT_ONCE, niyra_ask_window_s=AT_ONCE, max_body_bytes=100_000)
    async with running(nats_address, http=http) as api:
        yield api


def is_refusal(answer: httpx.Response, status: int, code: str) -> dict[str, str]:
    """The envelope: flat, of these fields and no others."""
    body: dict[str, str] = answer.json()
    assert (answer.status_code, body["error"]) == (status, code), answer.text
    assert body.keys() <= {"error", "error_description", "scope", "task_id"}
    assert body["error_description"]
    assert answer.headers["Content-Type"] == "application/json"
    return body


MISTAKES: list[tuple[str, Json]] = [
    (EXECUTE, {}),
    (EXECUTE, {"instruction": ""}),
    (EXECUTE, {"instruction": " \n"}),
    (EXECUTE, {"instruction": "x" * 8_001}),
    (EXECUTE, {"instruction": 5}),
    (EXECUTE, {"instruction": "x", "approval_mode": "never"}),
    (EXECUTE, {"instruction": "x", "conversation_id": "8f3b"}),
    (EXECUTE, {"instruction": "x", "conversation_id": 7}),
    (EXECUTE, {"instruction": "x", "channel_context": ["ci"]}),
    (EXECUTE, {"instruction": "x", "channel_context": "x" * 8_001}),
    (EXECUTE, {"confirmed_task_id": "task_xyz"}),
    (EXECUTE, ["x"]),
    (EXECUTE, None),
    (ASK, {}),
    (ASK, {"question": ""}),
    (ASK, {"question": " "}),
    (ASK, {"question": "x" * 4_001}),
    (ASK, {"question": "x", "conversation_id": "8f3b"}),
]


async def test_what_is_asked_wrongly_is_an_invalid_request(api: Api):
    for path, body in MISTAKES:
        refusal = is_refusal(await api.client.post(path, json=body), 400, "invalid_request")
        assert path not in refusal["error_description"]
    for broken in (b"{", b"", b"\xff", b'{"instruction": "\\ud800"}', b"[" * 90_000):
        is_refusal(await api.client.post(EXECUTE, content=broken), 400, "invalid_request")


async def test_the_longest_instruction_and_question_are_taken(api: Api):
    long = {"instruction": "é" * 8_000, "channel_context": "x" * 8_000, "approval_mode": None, "unknown": 1}
    assert (await api.client.post(EXECUTE, json=long)).status_code == 200
    assert (await api.client.post(ASK, json={"question": "é" * 4_000})).status_code == 200


async def test_who_has_no_valid_token_is_told_so(api: Api):
    tokens = api.rooms.tokens
    await tokens.add("pat_old", Owner("dev"), ("tasks:read",), expires_at=datetime.now(UTC) - timedelta(days=1))
    revoked = await tokens.add("pat_revoked", Owner("dev"), ("tasks:read",))
    await tokens.revoke(revoked.id)
    bodies: set[bytes] = set()
    async with httpx.AsyncClient(base_url=api.url) as client:
        for headers in (
            {},
            {"Authorization": "Bearer pat_unknown"},
            {"Authorization": "Bearer pat_old"},
            {"Authorization": "Bearer pat_revoked"},
            {"Authorization": "Basic cGF0OnBhdA=="},
        ):
            for path in (EXECUTE, ASK):
                is_refusal(await client.post(path, json={}, headers=headers), 401, "invalid_token")
            answer = await client.get(f"{TASKS}/x", headers=headers)
            is_refusal(answer, 401, "invalid_token")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            bodies.add(answer.content)
    assert len(bodies) == 1


NEEDED: list[tuple[str, str, Json, Scope]] = [
    ("POST", EXECUTE, {"instruction": "x"}, "niyra:execute"),
    ("POST", EXECUTE, {"confirmed_task_id": f"task_{uuid4()}"}, "niyra:execute"),
    ("POST", ASK, {"question": "x"}, "niyra:ask"),
    ("GET", f"{TASKS}/task_{uuid4()}", None, "niyra:tasks:read"),
]
FOLLOWUP: Json = {"instruction": "x", "conversation_id": str(uuid4())}
NIYRAS: tuple[Scope, ...] = ("niyra:execute", "niyra:ask", "niyra:followup", "niyra:tasks:read")


async def test_a_token_without_the_scope_is_told_which_it_needs(api: Api):
    for number, (method, path, body, scope) in enumerate(NEEDED):
        others: tuple[Scope, ...] = tuple(one for one in NIYRAS if one != scope)
        assert await status_with(api, f"pat_less{number}", (scope,), method, path, body) != 403
        bearer = await with_token(api, f"pat_{number}", others)
        refusal = is_refusal(
            await api.client.request(method, path, json=body, headers=bearer), 403, "insufficient_scope"
        )
        assert refusal["scope"] == scope
    bearer = await with_token(api, "pat_no_followup", ("niyra:execute",))
    refusal = is_refusal(await api.client.post(EXECUTE, json=FOLLOWUP, headers=bearer), 403, "insufficient_scope")
    assert refusal["scope"] == "niyra:followup"


async def test_our_own_scopes_include_the_vendors(api: Api):
    for method, path, body, scope in NEEDED:
        ours: Scope = "tasks:read" if method == "GET" else "tasks:write"
        assert await status_with(api, f"pat_{ours}", (ours,), method, path, body) != 403
        other: Scope = "tasks:write" if method == "GET" else "tasks:read"
        assert await status_with(api, f"pat_{other}", (other,), method, path, body) == 403, scope
    # The vendor's scopes open nothing of ours.
    assert await status_with(api, "pat_vendor", NIYRAS, "GET", "/tasks", None) == 403


async def with_token(api: Api, token: str, scopes: tuple[Scope, ...]) -> dict[str, str]:
    await api.rooms.tokens.add(token, Owner("dev"), scopes)
    return {"Authorization": f"Bearer {token}"}


async def status_with(api: Api, token: str, scopes: tuple[Scope, ...], method: str, path: str, body: Json) -> int:
    headers = await with_token(api, token, scopes)
    return (await api.client.request(method, path, json=body, headers=headers)).status_code


async def test_another_owners_task_reads_as_one_that_is_not(api: Api):
    task_id = await api.begin()
    assert (await api.client.get(f"{TASKS}/{task_id}")).status_code == 200
    assert (await api.client.get(f"{TASKS}/{task_id.removeprefix('task_')}")).status_code == 200
    await api.rooms.tokens.add("pat_eve", Owner("eve"), ("tasks:read",))
    eve = {"Authorization": "Bearer pat_eve"}
    foreign = await api.client.get(f"{TASKS}/{task_id}", headers=eve)
    is_refusal(foreign, 404, "not_found")
    for unknown in (f"task_{uuid4()}", "task_xyz", "x", "*", ">", "a.b", "%00"):
        assert (await api.client.get(f"{TASKS}/{unknown}", headers=eve)).content == foreign.content


async def test_what_is_not_there_is_refused_in_the_same_words(api: Api):
    for path in (
        "/v1/public",
        "/v1/public/",
        "/v1/public/nothing",
        "/niyra",
        "/niyra/tasks",
        "/niyra/v1",
        f"{TASKS}/x/y",
    ):
        is_refusal(await api.client.get(path), 404, "not_found")
    for path in (EXECUTE, f"/niyra{EXECUTE}", ASK):
        is_refusal(await api.client.get(path), 405, "method_not_allowed")
    is_refusal(await api.client.delete(f"{TASKS}/task_{uuid4()}"), 405, "method_not_allowed")
    # Elsewhere they are in ours.
    for path in ("/v1/publicity", "/niyrana", "/nothing"):
        assert (await api.client.get(path)).headers["Content-Type"] == "application/problem+json"


async def test_what_is_too_large_is_refused(api: Api):
    is_refusal(await api.client.post(EXECUTE, json={"instruction": "x" * 100_001}), 413, "request_too_large")


async def test_without_lists_no_conversation_goes_on_and_nothing_is_done(api: Api):
    answer = await api.client.post(EXECUTE, json=FOLLOWUP)
    is_refusal(answer, 503, "temporarily_unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert await api.arrivals() == []


@pytest.mark.parametrize("error", [LogUnavailable("away"), LogFull("full"), ViewsUnavailable("behind")])
def test_what_can_not_be_done_now_may_be_asked_again(error: Exception):
    status, refusal, headers = refusal_of(error)
    assert (status, refusal.error, refusal.task_id) == (503, "temporarily_unavailable", None)
    assert int(headers["Retry-After"]) > 0


def test_a_fault_of_ours_says_nothing_of_itself():
    status, refusal, _ = refusal_of(ZeroDivisionError("secret"))
    assert (status, refusal.error, refusal.error_description) == (500, "server_error", "A fault of ours")


def test_what_may_have_been_done_names_its_task():
    status, refusal, _ = refusal_of(OutcomeUnknown("nobody knows", task_id=None))
    assert (status, refusal.error) == (503, "temporarily_unavailable")
