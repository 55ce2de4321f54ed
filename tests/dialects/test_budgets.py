"""What each dialect tells of its limits: on every answer that its contract asks for, and when they are spent."""

from collections.abc import AsyncGenerator
from time import time
from typing import get_args
from uuid import uuid4

import httpx
import pytest
from litestar.routes import HTTPRoute

from app.auth import Principal
from app.dialects.budgets import HEADERS, native_headers, niyra_headers, shannon_headers, shannon_refusal
from app.limits import Budget, RateLimited, Standing
from app.settings import HttpSettings, LimitSettings
from eventstore.connection import NatsAddress
from eventstore.events import Owner
from eventstore.tokens import Dialect, Plan, Scope
from tests.api import DEV, Api, running
from tests.dialects.niyra import ASK, EXECUTE, TASKS
from tests.dialects.routes import litestar_of
from tests.dialects.test_niyra_errors import is_refusal

ALL: tuple[Scope, ...] = ("tasks:read", "tasks:write")
NIYRAS = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    """An API whose tasks nobody works on, and whose native limit is 5."""
    http = HttpSettings(
        niyra_execute_window_s=0.1,
        niyra_ask_window_s=0.1,
        limits=LimitSettings(native_limit=5, niyra_ask_limit=4, niyra_execute_limit=3, niyra_poll_limit=6),
    )
    async with running(nats_address, http=http) as api:
        await api.rooms.tokens.add("pat_a", DEV, ALL)
        yield api


@pytest.fixture
async def ann(api: Api) -> AsyncGenerator[httpx.AsyncClient]:
    """Somebody whose requests are counted."""
    async with httpx.AsyncClient(base_url=api.url, headers={"Authorization": "Bearer pat_a"}, timeout=30) as client:
        yield client


def standing(answer: httpx.Response) -> tuple[int, int]:
    """Limit and remaining, as Niyra tells them; Reset is in the minute to come."""
    assert answer.headers.keys() >= NIYRAS
    assert time() - 30 < int(answer.headers["X-RateLimit-Reset"]) <= time() + 61
    return int(answer.headers["X-RateLimit-Limit"]), int(answer.headers["X-RateLimit-Remaining"])


async def test_every_answer_of_niyras_tells_how_the_token_stands(api: Api, ann: httpx.AsyncClient):
    task_id = await api.begin()
    polled = await ann.get(f"{TASKS}/{task_id}")
    assert (polled.status_code, standing(polled)) == (200, (6, 5))
    same = await ann.get(f"{TASKS}/{task_id}", headers={"If-None-Match": polled.headers["ETag"]})
    assert (same.status_code, standing(same)) == (304, (6, 4))
    missing = await ann.get(f"/niyra{TASKS}/task_{uuid4()}")
    assert (missing.status_code, standing(missing)) == (404, (6, 3))
    done = await ann.post(EXECUTE, json={"instruction": "x"}, headers={"Idempotency-Key": "k"})
    assert (done.status_code, standing(done)) == (200, (3, 2))
    reused = await ann.post(EXECUTE, json={"instruction": "y"}, headers={"Idempotency-Key": "k"})
    assert (reused.status_code, standing(reused)) == (422, (3, 1))
    bad = await ann.post(ASK, json={})
    assert (bad.status_code, standing(bad)) == (400, (4, 3))
    # What is no route, and who is nobody, costs nothing, and is told what there is.
    for answer in (await ann.get("/v1/public/nothing"), await ann.get(EXECUTE), await ann.delete("/niyra")):
        assert (answer.status_code in (404, 405), standing(answer)) == (True, (6, 6))
    for path, limit in ((EXECUTE, 3), (ASK, 4)):
        answer = await ann.post(path, headers={"Authorization": "Bearer wrong"})
        assert (answer.status_code, standing(answer)) == (401, (limit, limit))
    assert (await ann.get(f"{TASKS}/x")).headers["X-RateLimit-Remaining"] == "2"


async def test_over_the_limit_niyra_refuses_in_its_words_and_says_when_to_come_back(api: Api, ann: httpx.AsyncClient):
    for left in (2, 1, 0):
        answer = await ann.post(EXECUTE, json={"instruction": "x"})
        assert (answer.status_code, standing(answer)) == (200, (3, left))
    before = len(await api.arrivals())
    for _ in range(3):
        refused = await ann.post(EXECUTE, json={"instruction": "x"})
        is_refusal(refused, 429, "rate_limit_exceeded")
        assert standing(refused) == (3, 0)
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert int(refused.headers["X-RateLimit-Reset"]) <= time() + int(refused.headers["Retry-After"]) + 1
    assert len(await api.arrivals()) == before
    assert api.metric("requests_limited_total", dialect="niyra") == 3
    assert (await ann.post(ASK, json={"question": "x"})).status_code == 200


async def test_an_unlimited_token_is_told_of_limits_that_it_never_meets(api: Api):
    for _ in range(8):
        answer = await api.client.post(EXECUTE, json={"instruction": "x"})
        assert (answer.status_code, standing(answer)) == (200, (3, 3))
    assert api.metric("requests_limited_total", dialect="niyra") == 0


async def test_a_token_without_the_scope_pays_for_asking(api: Api):
    await api.rooms.tokens.add("pat_reads", DEV, ("tasks:read",), plan=Plan(multiplier=2))
    bearer = {"Authorization": "Bearer pat_reads"}
    answer = await api.client.post(EXECUTE, json={"instruction": "x"}, headers=bearer)
    assert (answer.status_code, standing(answer)) == (403, (6, 5))


async def test_our_own_api_has_the_drafts_headers_and_a_problem_where_a_limit_is_set(api: Api, ann: httpx.AsyncClient):
    task_id = await api.begin()
    for left in (4, 3, 2):
        answer = await ann.get(f"/tasks/{task_id}", headers={"Prefer": "wait=0"})
        assert answer.headers["RateLimit-Policy"] == '"native";q=5;w=60'
        assert answer.headers["RateLimit"].startswith(f'"native";r={left};t=')
    await ann.get("/agents")
    stream = await ann.get(f"/tasks/{task_id}/events", params={"limit": 1})
    assert (stream.status_code, stream.headers["RateLimit"][:12]) == (200, '"native";r=0')
    refused = await ann.get(f"/tasks/{task_id}")
    problem = refused.json()
    assert (refused.status_code, problem["code"], problem["status"]) == (429, "rate_limited", 429)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    # What needs no token is not counted.
    assert not {"RateLimit", "X-RateLimit-Limit"} & {*(await ann.get("/health/live")).headers}
    assert (await ann.get("/docs/asyncapi.json")).status_code == 200


SHANNONS = {
    "x-ratelimit-limit-minute",
    "x-ratelimit-remaining-minute",
    "x-ratelimit-limit-hour",
    "x-ratelimit-remaining-hour",
    "x-ratelimit-reset",
}


async def test_shannons_limited_routes_tell_of_minute_and_hour_and_refuse_in_its_words(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(limits=LimitSettings(shannon_minute_limit=3))) as api:
        await api.rooms.tokens.add("sk_test_123456", DEV, ALL)
        async with httpx.AsyncClient(base_url=api.url, headers={"X-API-Key": "sk_test_123456"}) as client:
            begun = await client.post("/api/v1/tasks", json={"query": "x"})
            path = f"/api/v1/tasks/{begun.json()['task_id']}"
            controlled = await client.get(f"{path}/control-state")
            bad = await client.post("/shannon/api/v1/tasks", json={})
            for answer, status, left in ((begun, 200, "2"), (controlled, 200, "1"), (bad, 400, "0")):
                assert (answer.status_code, answer.headers["X-RateLimit-Remaining-Minute"]) == (status, left)
                assert answer.headers.keys() >= SHANNONS
                assert answer.headers["X-RateLimit-Limit-Hour"] == "1000"
            refused = await client.post("/api/v1/tasks", json={"query": "x"})
            assert (refused.status_code, refused.json()["window"]) == (429, "minute")
            assert refused.json()["error"] == "Rate limit exceeded"
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert refused.headers.keys() >= SHANNONS
            # Its polls and streams have no limit, and no headers.
            polled = await client.get(path)
            assert (polled.status_code, SHANNONS & {*polled.headers}) == (200, set())


async def test_nanonets_refuses_in_its_words_and_says_when_to_come_back(nats_address: NatsAddress):
    async with running(nats_address, http=HttpSettings(limits=LimitSettings(nanonets_limit=2))) as api:
        await api.rooms.tokens.add("nn_key", DEV, ALL)
        async with httpx.AsyncClient(base_url=api.url, headers={"Authorization": "Bearer nn_key"}) as client:
            for _ in range(2):
                assert (await client.get(f"/api/v1/tasks/{uuid4()}")).status_code == 404
            refused = await client.get(f"/v1/tasks/{uuid4()}")
            assert (refused.status_code, refused.json().keys()) == (429, {"error"})
            assert 1 <= int(refused.headers["Retry-After"]) <= 60


def test_an_issuers_users_are_counted_however_many_tokens_they_have() -> None:
    def one(token_hash: str, *, vouched_for: bool) -> Principal:
        return Principal(owner=DEV, scopes=frozenset(), token_id="t", token_hash=token_hash, vouched_for=vouched_for)

    assert one("a", vouched_for=True).purse == one("b", vouched_for=True).purse
    assert one("a", vouched_for=False).purse != one("b", vouched_for=False).purse


async def test_without_a_limit_our_own_answers_tell_of_none(nats_address: NatsAddress):
    async with running(nats_address) as api:
        await api.rooms.tokens.add("tt_a", Owner("ann"), ALL)
        answer = await api.client.get("/agents", headers={"Authorization": "Bearer tt_a"})
        assert not [name for name in answer.headers if "ratelimit" in name]


async def test_every_budget_that_a_route_names_is_one(api: Api):
    handlers = [
        one for route in litestar_of(api).routes if isinstance(route, HTTPRoute) for one in route.route_handlers
    ]
    named = {str(one.opt["limit"]) for one in handlers if "limit" in one.opt}
    assert named == set(get_args(Budget))
    assert HEADERS.keys() == set(get_args(Dialect))


MINUTE = Standing("shannon.minute", 60, 12, 60, 4.2)
HOUR = Standing("shannon.hour", 1_000, 0, 3_600, 300.5)
DAY = Standing("shannon.day", 10_000, 5_000, 86_400, 9_000.0)


def test_shannon_tells_of_the_minute_and_the_hour():
    fresh = Standing("shannon.hour", 1_000, 3, 3_600, 300.5)
    assert shannon_headers([MINUTE, fresh, DAY], 1_000.0) == {
        "X-RateLimit-Limit-Minute": "60",
        "X-RateLimit-Remaining-Minute": "12",
        "X-RateLimit-Limit-Hour": "1000",
        "X-RateLimit-Remaining-Hour": "3",
        "X-RateLimit-Reset": "1005",
    }
    assert shannon_headers([MINUTE, HOUR, DAY], 1_000.0)["X-RateLimit-Reset"] == "1301"


def test_shannon_refuses_in_its_own_words_and_names_the_window():
    error = RateLimited([MINUTE, HOUR, DAY])
    assert error.retry_after_s == 301
    assert shannon_refusal(error) == (
        b'{"error":"Rate limit exceeded","message":"Too many requests. hour limit exceeded. '
        b'Please retry after 301 seconds.","window":"hour"}\n'
    )


def test_nothing_is_told_of_what_is_not_limited():
    assert native_headers([], 0.0) == niyra_headers([], 0.0) == shannon_headers([], 0.0) == {}
