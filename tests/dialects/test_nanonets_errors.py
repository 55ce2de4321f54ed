"""Nanonets' errors: one shape for whatever goes wrong on its paths, and no word of what is another workspace's."""

import asyncio
import random
import string
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from app.dialects.nanonets import NewRun, refusal_of, status_of, task_id_said, to_command
from app.problems import BadRequest
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from eventstore.log import TASK_ID, BlobDamaged, LogFull, LogUnavailable, OutcomeUnknown
from projections.task import Status, Task
from projections.views_errors import ViewsUnavailable
from tests.api import Api, running
from tests.dialects.nanonets import AGENTS, RUN, TASKS

OF_A_TASK = [
    *[("GET", what) for what in ("", "/summary", "/result", "/messages")],
    *[("POST", what) for what in ("/message", "/cancel")],
]


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    """An API whose tasks nobody works on."""
    async with running(nats_address, http=HttpSettings(max_body_bytes=100_000)) as api:
        yield api


def is_refusal(answer: httpx.Response, status: int) -> str:
    """The shape: an error that is a text, and nothing else."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    assert body.keys() == {"error"}
    assert body["error"]
    assert answer.headers["Content-Type"] == "application/json"
    return body["error"]


MISTAKES: list[Json] = [
    {},
    {"query": ""},
    {"query": " \n"},
    {"query": 5},
    {"query": None},
    {"query": ["x"]},
    {"query": "x", "output_config": "{}"},
    {"query": "x", "output_config": {"output_schema": []}},
    {"query": "x", "output_config": {"instructions": 5}},
    {"query": "x", "output_config": {"output_schema": {"a": "x" * 70_000}}},
    ["x"],
    "x",
    None,
]
NO_MESSAGES: list[Json] = [{}, {"message": ""}, {"message": " "}, {"message": 5}, {"text": "x"}, [], None]
BROKEN = [b"{", b"", b"\xff", b'{"query": "\\ud800"}', b"[" * 90_000, b'{"query": "x" ' + b" " * 100_000 + b"}"]
DEEP = b'{"query": "x", "output_config": {"output_schema": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001 + b"}"


async def test_what_is_asked_wrongly_is_a_bad_request_and_leaves_nothing_behind(api: Api):
    for body in MISTAKES:
        is_refusal(await api.client.post(RUN, json=body), 400)
    for content in (*BROKEN, DEEP):
        is_refusal(await api.client.post(RUN, content=content), 400)
    is_refusal(await api.client.post(RUN, json={"query": "x"}, headers={"Idempotency-Key": "x" * 256}), 400)
    assert await api.arrivals() == []
    task_id = await api.begin()
    for body in NO_MESSAGES:
        is_refusal(await api.client.post(f"{TASKS}/{task_id}/message", json=body), 400)
    for content in BROKEN:
        is_refusal(await api.client.post(f"{TASKS}/{task_id}/message", content=content), 400)
    assert len(await api.arrivals()) == 1


async def test_lists_that_are_asked_for_wrongly_are_bad_requests(api: Api):
    for asked in (
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "x"},
        {"status": "done"},
        {"status": "running,"},
        {"created_after": "yesterday"},
        {"created_before": "2026-01-01T00:00:00"},
        {"agent_id": "no agent!"},
        {"q": "x" * 201},
    ):
        is_refusal(await api.client.get(TASKS, params=asked), 400)
    # There are no views here, and so no lists.
    answer = await api.client.get(TASKS)
    is_refusal(answer, 503)
    assert int(answer.headers["Retry-After"]) > 0


async def test_who_has_no_valid_token_is_told_so_and_all_the_same(api: Api):
    tokens = api.rooms.tokens
    await tokens.add("nn_old", Owner("dev"), ("tasks:read",), expires_at=datetime.now(UTC) - timedelta(days=1))
    bodies: set[bytes] = set()
    async with httpx.AsyncClient(base_url=api.url) as client:
        for secret in (b"unknown", b"nn_old", b"x" * 10_000, "é".encode()):
            headers = [(b"authorization", b"Bearer " + secret)]
            for method, what in OF_A_TASK:
                answer = await client.request(method, f"{TASKS}/{uuid4()}{what}", headers=headers)
                is_refusal(answer, 401)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                bodies.add(answer.content)
        # A token in the wrong place is none.
        for path in (f"/v1/tasks/{uuid4()}?token={api.token}", f"/nanonets{TASKS}?api_key={api.token}"):
            is_refusal(await client.get(path), 401)
        is_refusal(await client.get("/v1/tasks", headers={"Cookie": f"Authorization=Bearer {api.token}"}), 401)
    assert len(bodies) == 1


async def test_a_token_without_the_scope_is_refused(api: Api):
    await api.rooms.tokens.add("nn_reader", Owner("dev"), ("tasks:read",))
    await api.rooms.tokens.add("nn_writer", Owner("dev"), ("tasks:write",))
    task_id = await api.begin()
    routes = [(method, f"{TASKS}/{task_id}{what}") for method, what in OF_A_TASK]
    routes += [("POST", RUN), ("GET", TASKS), ("GET", AGENTS), ("GET", f"{AGENTS}/simulator")]
    for method, path in routes:
        wrong = "nn_writer" if method == "GET" else "nn_reader"
        answer = await api.client.request(method, path, headers={"Authorization": f"Bearer {wrong}"})
        assert ("tasks:read" if method == "GET" else "tasks:write") in is_refusal(answer, 403)


async def test_another_workspaces_task_reads_as_one_that_is_not(api: Api):
    await api.rooms.tokens.add("nn_eve", Owner("eve"), ("tasks:read", "tasks:write"))
    eve = {"Authorization": "Bearer nn_eve"}
    task_id = (await api.begin()).removeprefix("task_")
    for method, what in OF_A_TASK:
        body = {"message": "x"} if method == "POST" else None
        foreign = await api.client.request(method, f"{TASKS}/{task_id}{what}", headers=eve, json=body)
        unknown = await api.client.request(method, f"{TASKS}/{uuid4()}{what}", headers=eve, json=body)
        assert is_refusal(foreign, 404) == is_refusal(unknown, 404)
    assert len(await api.arrivals()) == 1


async def test_an_agent_that_is_not_there_is_not_found_and_what_is_no_name_is_refused(api: Api):
    for named, status in ((str(uuid4()), 404), ("nobody", 404), ("no%20name", 400), ("a.b", 400), ("x" * 65, 400)):
        is_refusal(await api.client.get(f"{AGENTS}/{named}"), status)
        is_refusal(await api.client.post(f"{AGENTS}/{named}/run", json={"query": "x"}), status)


def random_ids(count: int) -> list[str]:
    """Of all lengths and signs, and some that are nearly right."""
    seeded = random.Random(7)
    signs = string.printable + "é\u202e\ud800\x00"
    wild = ["".join(seeded.choices(signs, k=seeded.randint(1, 80))) for _ in range(count // 2)]
    near = [str(uuid4()) for _ in range(count - len(wild))]
    return wild + [f"{one[:at]}{seeded.choice(signs)}{one[at + 1 :]}" for one in near for at in [seeded.randrange(36)]]


def test_ten_thousand_ids_are_ids_or_bad_requests():
    for text in random_ids(10_000):
        try:
            assert TASK_ID.fullmatch(task_id_said(text))
        except BadRequest:
            assert not TASK_ID.fullmatch(f"task_{text.lower()}")


async def test_hundreds_of_ids_over_http_are_refused_in_its_shape(api: Api):
    encodable = [text for text in random_ids(300) if "\ud800" not in text]

    async def asked(text: str) -> None:
        path = "".join(f"%{byte:02x}" for byte in text.encode())
        answer = await api.client.get(f"/v1/tasks/{path}")
        assert is_refusal(answer, 404 if answer.status_code == 404 else 400)

    for start in range(0, len(encodable), 50):
        await asyncio.gather(*map(asked, encodable[start : start + 50]))
    for path in ("/v1/tasks/%0d%0aX-Injected:%20x", "/v1/tasks/..%2f..%2fmetrics", "/v1/tasks/%00"):
        answer = await api.client.get(path)
        is_refusal(answer, 400 if "2f" not in path else 404)
        assert "X-Injected" not in answer.headers
    assert await api.arrivals() == []


async def test_what_is_not_there_is_refused_in_the_same_words(api: Api):
    for path in ("/nanonets", "/nanonets/v1", "/v1/tasks/x/y", f"{AGENTS}/simulator/run/x", "/v1/agents/x/y/z"):
        answer = await api.client.get(f"/nanonets{path}" if path.startswith("/api") else path)
        is_refusal(answer, 404)
    is_refusal(await api.client.get(RUN), 405)
    is_refusal(await api.client.post("/v1/tasks"), 405)
    is_refusal(await api.client.delete(f"{TASKS}/{uuid4()}"), 405)
    assert (await api.client.get("/nanonetsy")).headers["Content-Type"] == "application/problem+json"


async def test_a_body_that_comes_slowly_holds_up_nobody(api: Api):
    answered = asyncio.Event()

    async def slowly() -> AsyncGenerator[bytes]:
        yield b'{"query": '
        await answered.wait()
        yield b'"x"}'

    slow = asyncio.ensure_future(api.client.post(RUN, content=slowly()))
    assert (await api.client.get(AGENTS)).status_code == 200
    answered.set()
    assert (await slow).status_code == 200


def test_every_status_of_ours_has_its_word():
    begun = datetime.now(UTC)
    words: dict[Status, str] = {
        "pending": "pending",
        "queued": "queued",
        "running": "running",
        "waiting_for_input": "waiting_for_input",
        "awaiting_review": "awaiting_review",
        "paused": "running",
        "completed": "completed",
        "failed": "failed",
        "cancelled": "stopped",
        "timed_out": "stopped",
    }
    assert {status: status_of(Task(status=status)) for status in words} == words
    assert status_of(Task(status="pending", started_at=begun)) == "running"


def test_a_repeat_is_another_wish_where_its_files_are_others():
    one, other = [to_command(NewRun(query="x"), agent="a", digests=[("f", sha)]) for sha in ("1", "2")]
    assert one.fingerprint != other.fingerprint
    assert to_command(NewRun(query="y" * 300), agent="a").title == "y" * 99 + "…"


@pytest.mark.parametrize("error", [LogUnavailable("away"), LogFull("full"), ViewsUnavailable("behind")])
def test_what_can_not_be_done_now_may_be_asked_again(error: Exception):
    status, _, headers = refusal_of(error)
    assert status == 503
    assert int(headers["Retry-After"]) > 0


def test_a_fault_of_ours_says_nothing_of_itself():
    assert refusal_of(ZeroDivisionError("secret"))[0] == 500
    assert "secret" not in refusal_of(ZeroDivisionError("secret"))[1].error
    assert refusal_of(BlobDamaged("changed"))[0] == 500
    assert refusal_of(OutcomeUnknown("nobody knows", task_id=None))[0] == 503
