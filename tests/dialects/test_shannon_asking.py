"""What may be asked of Shannon's API, and how it refuses the rest: validation, tokens, keys, traces, strangers."""

import asyncio
import base64
import hashlib
import random
import string
import subprocess
import sys
from collections.abc import AsyncGenerator
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from app.commands import CompleteTask
from app.dialects.shannon import refusal_of
from app.settings import HttpSettings, LimitSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner, TaskId
from eventstore.log import LogFull, LogUnavailable, OutcomeUnknown
from projections.views_errors import ViewsUnavailable
from tests.api import Api, running
from tests.dialects.shannon import PREFIX, TASKS
from tests.lifecycle.commands import start_run

DECISION, SWARM = f"{PREFIX}/api/v1/approvals/decision", f"{PREFIX}/api/v1/swarm"


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    """An API whose tasks nobody works on."""
    http = HttpSettings(max_body_bytes=400_000, cors_origins=("https://page.example",))
    async with running(nats_address, http=http) as api:
        yield api


def refused(answer: httpx.Response, status: int, error: str | None = None) -> str:
    """The shape of every refusal."""
    assert answer.status_code == status, answer.text
    body: dict[str, str] = answer.json()
    assert body.keys() <= {"error", "task_id"}
    assert error in (None, body["error"])
    assert answer.text.endswith("\n")
    assert answer.headers["Content-Type"] == "application/json"
    return body["error"]


MODES = "Invalid mode (allowed: simple, standard, complex, supervisor)"
TOO_LARGE = "a request has at most 400000 bytes, its files aside"
CONFLICT = "disable_ai=true conflicts with model_tier/model_override"
MISTAKES: list[tuple[dict[str, Json], str]] = [
    ({}, "Query is required"),
    ({"query": ""}, "Query is required"),
    ({"query": None, "context": {"attachments": []}}, "Query is required"),
    ({"query": "x", "mode": "fast"}, MODES),
    ({"query": "x", "model_tier": "huge"}, "Invalid model_tier (allowed: small, medium, large)"),
    (
        {"query": "x", "research_strategy": "wild"},
        "Invalid research_strategy (allowed: quick, standard, deep, academic)",
    ),
    ({"query": "x", "max_iterations": 0}, "max_iterations out of range (1..50)"),
    ({"query": "x", "max_iterations": 51}, "max_iterations out of range (1..50)"),
    ({"query": "x", "max_concurrent_agents": 21}, "max_concurrent_agents out of range (1..20)"),
    ({"query": "x", "skill": "dance"}, "Unknown skill: dance"),
    ({"query": "x", "model_tier": "small", "context": {"disable_ai": True}}, CONFLICT),
    ({"query": "x", "context": {"disable_ai": "Yes", "model_override": "m"}}, CONFLICT),
]


async def test_what_is_submitted_wrongly_is_told_in_the_vendors_words(api: Api):
    for body, error in MISTAKES:
        for path in (TASKS, f"{TASKS}/stream"):
            refused(await api.client.post(path, json=body), 400, error)
    told = refused(await api.client.post(TASKS, json={"query": "x", "provider_override": "acme"}), 400)
    assert told.startswith("Invalid provider_override: ")
    told = refused(await api.client.post(TASKS, json={"query": "x", "context": {"agent": "bond"}}), 400)
    assert told.startswith("Unknown agent: bond")
    wrongs: list[Json] = [{"query": 5}, {"query": "x", "max_iterations": "3"}, {"query": "x", "context": []}, [1], None]
    for wrong in wrongs:
        told = refused(await api.client.post(TASKS, json=wrong), 400)
        assert told.startswith("Invalid request body: ")
    for broken in (b"", b"{", b"\xff", b'{"query": "\\ud800"}', b"[" * 100_000, b'{"query": "x"} x'):
        refused(await api.client.post(TASKS, content=broken), 400)
    deep = b'{"query": "x", "context": {"a": ' + b"[" * 200 + b"]" * 200 + b"}}"
    refused(await api.client.post(TASKS, content=deep), 400)
    refused(await api.client.post(TASKS, json={"query": "x" * 400_000}), 413, TOO_LARGE)
    refused(await api.client.post(TASKS, json={"query": "x", "session_id": "s" * 513}), 400)
    assert await api.arrivals() == []


async def test_what_may_be_submitted_is_taken_and_kept(api: Api):
    generous: dict[str, Json] = {
        "query": "  ",
        "session_id": None,
        "mode": " Supervisor ",
        "model_tier": "large",
        "model_override": "m",
        "provider_override": "openai",
        "research_strategy": "deep",
        "max_iterations": 50,
        "max_concurrent_agents": 1,
        "enable_verification": False,
        "skill": "",
        "unknown": {"a": 1},
        "context": {"agent": "simulator", "role": "x", "n": [1, None, 2.5], "disable_ai": 0},
    }
    plain = await api.client.post(TASKS, json=generous, headers={"Content-Type": "text/plain"})
    assert plain.status_code == 200
    body = (await api.client.get(f"{TASKS}/{plain.json()['task_id']}")).json()
    assert (body["query"], body["mode"]) == ("  ", "EXECUTION_MODE_STANDARD")
    assert body["context"] == generous["context"]
    assert body["status"] == "TASK_STATUS_QUEUED"
    large = await api.client.post(TASKS, json={"query": "é" * 100_000, "context": {"a": "b" * 100_000}})
    body = (await api.client.get(f"{TASKS}/{large.json()['task_id']}")).json()
    assert (len(body["query"]), len(body["context"]["a"])) == (100_000, 100_000)


ATTACHED: list[tuple[Json, str]] = [
    ("x", "Invalid attachments: "),
    ([{"data": "eA=="}], "Invalid attachments[0]: media_type is required"),
    ([{"media_type": "text/plain"}], "Invalid attachments[0]: data or url is required"),
    ([{"media_type": "text/plain", "data": "%"}], "Invalid attachments[0].data: "),
    ([{"media_type": "text/plain", "url": "u", "thumbnail": "A" * 70_000}], "Invalid attachments[0]: a thumbnail has"),
]


async def test_attachments_are_refused_where_they_are_none(api: Api):
    for attachments, error in ATTACHED:
        body = {"query": "x", "context": {"attachments": attachments}}
        assert refused(await api.client.post(TASKS, json=body), 400).startswith(error)
    assert await api.arrivals() == []


async def test_attachments_are_kept_as_the_tasks_files(api: Api):
    content = bytes(range(256)) * 4_000  # more than a body without files may have
    attached: dict[str, Json] = {"media_type": "image/png", "filename": "../a.png"}
    data = base64.b64encode(content).decode()
    context: dict[str, Json] = {"attachments": [{**attached, "data": f"data:image/png;base64,{data}", "more": 1}]}
    answer = await api.client.post(TASKS, json={"context": context}, headers={"Idempotency-Key": "k"})
    again = await api.client.post(TASKS, json={"context": context}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, again.json()) == (200, answer.json())
    task_id = answer.json()["task_id"]
    body = (await api.client.get(f"{TASKS}/{task_id}")).json()
    digest = hashlib.sha256(content).hexdigest()
    kept = {**attached, "size_bytes": len(content), "sha256": digest}
    assert (body["query"], body["context"]) == ("Please look at what is attached.", {"attachments": [kept]})
    told = (await api.client.get(f"/tasks/{task_id}")).json()["files"]
    assert [(one["name"], one["media_type"], one["size"]) for one in told] == [("a.png", "image/png", len(content))]
    assert (await api.client.get(f"/tasks/{task_id}/blobs/{digest}")).content == content


async def test_what_is_no_file_counts_as_any_other_body(api: Api):
    nothing: Json = {}
    bodies: list[Json] = [
        {"query": "A" * 400_001},
        {"query": "x", "context": {"a": "A" * 400_001}},
        {"query": "x", "context": {"attachments": [{"media_type": "a/b", "url": "A" * 400_001}]}},
        {"query": "x", "context": {"attachments": [nothing] * 200_000}},
    ]
    for body in bodies:
        refused(await api.client.post(TASKS, json=body), 413, TOO_LARGE)
    many = [{"media_type": "a/b", "data": "eA=="}] * 65
    refused(await api.client.post(TASKS, json={"query": "x", "context": {"attachments": many}}), 400)


async def test_without_lists_no_session_goes_on_and_nothing_is_done(api: Api):
    refused(await api.client.post(TASKS, json={"query": "x", "session_id": "s1"}), 503)
    assert await api.arrivals() == []


async def test_the_result_is_parsed_where_it_is_an_object(api: Api):
    results: list[tuple[str | None, Json]] = [
        ('{"a": 1.0, "result": [1e2]}', {"a": 1.0, "result": [100.0]}),
        ("[1]", {"result": "[1]"}),
        ('{"a": NaN}', {"result": '{"a": NaN}'}),
        ('{"a": 1} and more', {"result": '{"a": 1} and more'}),
        ("{" * 5_000, {"result": "{" * 5_000}),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, {"result": '{"a":' * 5_000 + "1" + "}" * 5_000}),
        ("", None),
        (None, None),
    ]
    for result, response in results:
        task_id = await api.begin(start_run(1), CompleteTask(run=1, result=result))
        body = (await api.client.get(f"{TASKS}/{task_id}")).json()
        assert (body["status"], body["result"]) == ("TASK_STATUS_COMPLETED", result or "")
        assert body["response"] == response


async def test_another_apis_task_reads_as_one_of_shannons(api: Api):
    begun = await api.client.post("/tasks", json={"input": {"steps": []}, "metadata": {"context": "mine"}})
    body = (await api.client.get(f"{TASKS}/{begun.json()['task_id']}")).json()
    assert (body["query"], body["session_id"], body["mode"]) == ('{"steps":[]}', "", "EXECUTION_MODE_STANDARD")
    assert "context" not in body


async def test_who_has_no_valid_token_is_told_so(api: Api):
    async with httpx.AsyncClient(base_url=api.url) as anybody:
        for headers in (
            {},
            {"X-API-Key": "sk_wrong_key"},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic x"},
            {"X-API-Key": "wrong", "Authorization": f"Bearer {api.token}"},
        ):
            for method, path in (
                ("GET", f"{TASKS}/{uuid4()}"),
                ("POST", TASKS),
                ("GET", f"{TASKS}?api_key={api.token}"),
            ):
                answer = await anybody.request(method, path, headers=headers)
                refused(answer, 401, "Unauthorized")
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Shannon API"'


async def test_a_key_comes_in_either_header_and_in_the_vendors_disguise(api: Api):
    await api.rooms.tokens.add("sk_test_123456", Owner("dev"), ("tasks:read",))
    async with httpx.AsyncClient(base_url=api.url) as anybody:
        for headers in (
            {"X-API-Key": "sk_test_123456"},
            {"X-API-Key": "sk-shannon-test_123456"},
            {"X-API-Key": "sk-shannon-sk_test_123456", "Authorization": "Bearer wrong"},
            {"Authorization": "bearer sk-shannon-test_123456"},
        ):
            refused(await anybody.get(f"{TASKS}/task_abc123", headers=headers), 404, "Task not found")
        refused(await anybody.post(TASKS, json={"query": "x"}, headers={"X-API-Key": "sk_test_123456"}), 403)


async def test_another_owners_task_reads_as_one_that_is_not(api: Api, stranger: httpx.AsyncClient):
    task_id = (await api.client.post(TASKS, json={"query": "x"})).json()["task_id"]
    for unknown in (task_id, f"task_{uuid4()}", "task_abc123"):
        for path in ("", "/control-state", "/review"):
            refused(await stranger.get(f"{TASKS}/{unknown}{path}"), 404, "Task not found")
        for path in ("/cancel", "/pause", "/resume"):
            refused(await stranger.post(f"{TASKS}/{unknown}{path}"), 404, "Task not found")
        approve = {"action": "approve"}
        refused(await stranger.post(f"{TASKS}/{unknown}/review", json=approve), 404, "Task not found")
        decision = {"workflow_id": unknown, "approval_id": "approval-0", "approved": True}
        refused(await stranger.post(DECISION, json=decision), 404, "Workflow or approval not found")
        message = {"message": "x"}
        refused(await stranger.post(f"{SWARM}/{unknown}/message", json=message), 404, "Workflow not found")
    assert (await api.client.get(f"{TASKS}/{task_id}")).json()["status"] == "TASK_STATUS_QUEUED"


async def test_ids_that_are_none_are_refused_and_never_a_fault(api: Api):
    nobodys = (404, "Task not found")
    for texts, read, commanded in (
        (("a b", "x" * 129, "é", "task_%0d%0aX: 1", "%00", "*", ">", "a;b"), (400, "Invalid task ID format"), nobodys),
        (("abc", "x" * 128, "a.b:c_d-e", "task_00000000"), nobodys, nobodys),
        (("..%2f..", "a%2Fb"), (404, "404 page not found"), (404, "404 page not found")),
    ):
        for text in texts:
            for path in ("", "/control-state", "/review", "/events", "/timeline"):
                refused(await api.client.get(f"{TASKS}/{text}{path}"), *read)
            refused(await api.client.post(f"{TASKS}/{text}/review", json={"action": "approve"}), *read)
            for path in ("/cancel", "/pause", "/resume"):
                refused(await api.client.post(f"{TASKS}/{text}{path}"), *commanded)
    known = TaskId((await api.client.post(TASKS, json={"query": "x"})).json()["task_id"])
    for same in (known, known.upper(), known.removeprefix("task_")):
        assert (await api.client.get(f"{TASKS}/{same}")).json()["task_id"] == known


async def test_random_ids_are_never_a_fault_and_leave_nothing(api: Api):
    dice = random.Random(20)
    letters = string.ascii_letters + string.digits + ":_-." + "/%?#&=;+ é☃"

    async def ask() -> None:
        text = quote("".join(dice.choices(letters, k=dice.randint(1, 140))), safe="/%:" if dice.random() < 0.3 else "")
        what = dice.choice(("", "/control-state", "/review", "/cancel", "/pause", "/resume"))
        method = "POST" if what in ("/cancel", "/pause", "/resume") else dice.choice(("GET", "POST"))
        answer = await api.client.request(method, f"{TASKS}/{text}{what}", content=dice.randbytes(dice.randint(0, 40)))
        assert answer.status_code in (400, 404, 405), (method, text, what, answer.text)
        assert answer.json().keys() == {"error"}

    for _ in range(10):
        await asyncio.gather(*(ask() for _ in range(30)))
    assert await api.arrivals() == []


async def test_what_is_not_there_is_refused_in_the_same_shape(api: Api):
    outside = ("skills", "schedules", "tools", "memory/files", "agents", "auth/me", "daemon/status", "x")
    for path in outside:
        refused(await api.client.get(f"{PREFIX}/api/v1/{path}"), 404)
        refused(await api.client.post(f"{PREFIX}/api/v1/{path}", json={}), 404)
    for path in ("/v1/models", "/v1/chat/completions", "", "/nothing"):
        refused(await api.client.get(PREFIX + path), 404)
    refused(await api.client.put(TASKS), 405)
    refused(await api.client.get(DECISION), 405)


async def test_the_same_key_and_body_are_the_same_task(api: Api):
    headers = {"Idempotency-Key": "k 1"}
    body = {"query": "x"}
    twins = await asyncio.gather(*(api.client.post(TASKS, json=body, headers=headers) for _ in range(8)))
    assert len({twin.content for twin in twins}) == 1
    assert len({twin.headers["X-Session-ID"] for twin in twins}) == 1
    cached = [twin for twin in twins if "X-Idempotency-Cached" in twin.headers]
    assert len(cached) == 7
    assert {(one.headers["X-Idempotency-Cached"], one.headers["X-Idempotency-Key"]) for one in cached} == {
        ("true", "k 1")
    }
    again = await api.client.post(f"{TASKS}/stream", json=body, headers=headers)
    assert (again.status_code, again.json()["task_id"]) == (201, twins[0].json()["task_id"])
    other = await api.client.post(TASKS, json={"query": "y"}, headers=headers)
    assert (other.status_code, "X-Idempotency-Cached" in other.headers) == (200, False)
    assert other.json()["task_id"] != twins[0].json()["task_id"]
    unkeyed = await api.client.post(TASKS, json=body, headers={"Idempotency-Key": ""})
    assert unkeyed.json()["task_id"] != twins[0].json()["task_id"]
    refused(await api.client.post(TASKS, json=body, headers={"Idempotency-Key": "k" * 256}), 400)


async def test_every_answer_names_its_trace(api: Api):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    asked: list[tuple[dict[str, str], str]] = [
        ({"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Trace-ID": "t"}, trace),
        ({"X-Trace-ID": "t-1", "X-Request-ID": "r"}, "t-1"),
        ({"X-Trace-ID": "not a name", "X-Request-ID": "r-1"}, "r-1"),
    ]
    spans = set[str]()
    for headers, trace_id in asked:
        for path in (f"{TASKS}/x", f"{PREFIX}/nothing", f"{PREFIX}/health"):
            answer = await api.client.get(path, headers=headers)
            assert answer.headers["X-Trace-ID"] == trace_id
            spans.add(answer.headers["X-Span-ID"])
    assert len(spans) == 9
    assert {len(span) for span in spans} == {14}
    assert len((await api.client.get(f"{TASKS}/x")).headers["X-Trace-ID"]) == 32
    assert "X-Span-ID" not in (await api.client.get("/tasks/x")).headers


async def test_a_page_of_another_origin_may_read_what_the_vendors_may(api: Api):
    answer = await api.client.get(f"{PREFIX}/health", headers={"Origin": "https://page.example"})
    exposed = answer.headers["Access-Control-Expose-Headers"].lower()
    assert "x-session-id" in exposed
    assert "x-trace-id" in exposed
    # And what a poll of our own or of the others needs: every header of an answer that is not the browser's own.
    created = await api.client.post("/tasks", json={}, headers={"Origin": "https://page.example"})
    polled = await api.client.get(created.headers["Location"], headers={"Origin": "https://page.example"})
    for answer in (created, polled):
        own = {"date", "server", "vary", "content-length", "content-type", "cache-control", "x-content-type-options"}
        said = {name for name in answer.headers if not name.startswith("access-control-")} - own
        exposed = {one.strip() for one in answer.headers["Access-Control-Expose-Headers"].lower().split(",")}
        assert said - exposed == set()
    assert "etag" in polled.headers


async def test_a_poll_that_knows_the_version_costs_no_body(api: Api):
    task_id = (await api.client.post(TASKS, json={"query": "x"})).json()["task_id"]
    poll = await api.client.get(f"{TASKS}/{task_id}")
    assert poll.headers["X-Workflow-ID"] == task_id
    assert int(poll.headers["Retry-After"]) >= 2
    again = await api.client.get(f"{TASKS}/{task_id}", headers={"If-None-Match": poll.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_lists_are_refused_in_the_vendors_words(api: Api):
    for query, error in (
        ("limit=0", "Invalid limit parameter"),
        ("limit=101", "Invalid limit parameter"),
        ("limit=x", "Invalid limit parameter"),
        ("limit=1e1", "Invalid limit parameter"),
        ("offset=-1", "Invalid offset parameter"),
        (f"offset={'9' * 400}", "Invalid offset parameter"),
        ("status=PAUSED", "Invalid status value"),
        ("status=TASK_STATUS_RUNNING", "Invalid status value"),
        ("session_id=a%20b", "Invalid session_id format"),
    ):
        refused(await api.client.get(f"{TASKS}?{query}"), 400, error)
    refused(await api.client.get(TASKS), 503)


def test_what_can_not_be_done_now_may_be_asked_again() -> None:
    for error in (LogFull("full"), LogUnavailable("away"), ViewsUnavailable("away")):
        status, refusal, headers = refusal_of(error)
        assert (status, refusal.error, int(headers["Retry-After"]) > 0) == (503, str(error), True)
    status, refusal, _ = refusal_of(OutcomeUnknown("?", task_id=TaskId("task_1")))
    assert (status, refusal.task_id) == (503, "task_1")
    assert refusal_of(RuntimeError("secret"))[1].error == "Internal server error"


async def test_shannons_limits_are_told_and_kept(nats_address: NatsAddress):
    http = HttpSettings(limits=LimitSettings(shannon_minute_limit=2))
    async with running(nats_address, http=http) as api:
        await api.rooms.tokens.add("tt_few", Owner("dev"), ("tasks:read", "tasks:write"))
        headers = {"Authorization": "Bearer tt_few"}
        answers = [await api.client.post(TASKS, json={"query": "x"}, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        left = [
            (answer.headers["X-RateLimit-Limit-Minute"], answer.headers["X-RateLimit-Remaining-Minute"])
            for answer in answers
        ]
        assert left == [("2", "1"), ("2", "0"), ("2", "0")]
        over = answers[-1].json()
        assert (over["error"], over["window"]) == ("Rate limit exceeded", "minute")
        assert int(answers[-1].headers["Retry-After"]) >= 1
        task_id = answers[0].json()["task_id"]
        assert (await api.client.get(f"{TASKS}/{task_id}", headers=headers)).status_code == 200  # a poll is not counted


HUNGRY = """
import resource
from app.dialects.shannon_attachments import check_size
from app.settings import HttpSettings

resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, 2_000_000_000))
check_size(b'{"data":"' + b"A" * 33_000_000 + b'"}', HttpSettings())
print("taken")
"""


def test_a_large_attachment_is_measured_in_little_more_memory_than_it_has():
    said = subprocess.run([sys.executable, "-c", HUNGRY], capture_output=True, text=True, timeout=60, check=False)
    assert said.stdout == "taken\n", said.stderr[-500:]


async def test_a_token_in_the_query_opens_streams_alone_and_never_writes(api: Api):
    task_id = await api.begin()
    stream = {"Accept": "text/event-stream"}
    query = f"token={api.token}"
    async with httpx.AsyncClient(base_url=api.url, headers=stream) as client:
        for method, path in (
            ("GET", f"{TASKS}/{task_id}/events"),
            ("GET", f"{PREFIX}/api/v1/sessions/s1/events"),
            ("PATCH", f"{PREFIX}/api/v1/sessions/events"),
            ("DELETE", f"{PREFIX}/api/v1/sessions/events"),
            ("DELETE", "/admin/tokens/events"),
        ):
            answer = await client.request(method, f"{path}?{query}")
            assert answer.status_code == 401, (method, path, answer.text)


async def test_a_redirect_never_leads_to_another_host(api: Api):
    task_id = await api.begin()
    async with httpx.AsyncClient(headers=api.bearer, follow_redirects=False) as client:
        answer = await client.get(f"{api.url}//api/v1/tasks/{task_id}/stream")
    assert not answer.headers.get("Location", "").startswith("//")
