"""Shannon's sessions, row by row of their contract, by the vendor's own SDK and by HTTP, with a worker at work."""

from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec
import pytest
from shannon import AsyncShannonClient
from shannon.errors import SessionNotFoundError, ValidationError
from shannon.models import TaskStatusEnum

from app.agents.agent import Brief, Work
from app.dialects import shannon_session_routes
from eventstore.connection import NatsAddress
from eventstore.events import Json, Owner
from tests.api import Api, running
from tests.dialects.shannon import PREFIX, Shannon, speaking
from tests.walk.wire import Wire
from tests.worker.agents import Own

SESSIONS = f"{PREFIX}/api/v1/sessions"
AT_ONCE: dict[str, Json] = {"scenario": {"steps": [{"complete": "Done"}]}}
NOT_FOUND = {"error": "Session not found"}
ATTACHED: Json = {"media_type": "text/plain", "url": "https://page.example/a.txt"}
ODD = [
    "two words",
    "a.b",
    "*",
    "日本",
    "a\0b",
    "'; DROP TABLE sessions_1; --",
    "s" * 500,
    "%2F",
    "?",
    "a/b",
    "/",
    "a//b/history",
    "%252F/",
]


@pytest.fixture
async def shannon(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    async with speaking(nats_address, tmp_path) as shannon:
        yield shannon


@pytest.fixture
async def remembering(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Shannon]:
    """Whose worker has, by the name of the deployment's default agent, one that says what it was told."""
    async with speaking(nats_address, tmp_path, agents=[Own(remembers, name="simulator")]) as shannon:
        yield shannon


def sdk_of(shannon: Shannon) -> AsyncShannonClient:
    """The vendor's client, as it is published."""
    return AsyncShannonClient(base_url=shannon.address, api_key=shannon.api.token)


def remembers(brief: Brief) -> Work:
    """Its result is what it was told of its session."""
    yield from ()
    return msgspec.json.encode([[one.input, one.result] for one in brief.conversation]).decode()


async def read(shannon: Shannon, path: str, **query: str) -> dict[str, Json]:
    answer = await shannon.api.client.get(f"{SESSIONS}{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def listed(shannon: Shannon, **query: str) -> list[dict[str, Json]]:
    return msgspec.convert((await read(shannon, "", **query))["sessions"], list[dict[str, Json]])


async def talk(shannon: Shannon, session_id: str, *results: str, query: str = "x") -> list[str]:
    """Ended tasks of a session, one after the other."""
    tasks = [await shannon.begun({"complete": one}, query=query, session_id=session_id) for one in results]
    for task_id in tasks:
        await shannon.ended(task_id)
    return tasks


def told(value: Json) -> list[dict[str, Json]]:
    return msgspec.convert(value, list[dict[str, Json]])


async def facts_of_sessions(api: Api) -> list[bytes]:
    return [one.stored for one in await api.arrivals() if one.subject.startswith("sessions.")]


async def test_the_vendors_sdk_goes_on_in_a_session_and_reads_it_back(remembering: Shannon):
    async with sdk_of(remembering) as sdk:
        one = await sdk.submit_task("Who?", session_id="chat-1")
        assert one.session_id == "chat-1"
        first = await sdk.wait(one.task_id, poll_interval=0.05)
        assert first.result == "[]"
        two = await sdk.submit_task("And then?", session_id="chat-1")
        second = await sdk.wait(two.task_id, poll_interval=0.05)
        assert (second.status, second.result) == (TaskStatusEnum.COMPLETED, '[["Who?","[]"]]')

        session = await sdk.get_session("chat-1")
        assert (session.session_id, session.task_count, session.title, session.user_id) == ("chat-1", 2, None, "dev")
        assert session.updated_at >= session.created_at == first.created_at

        history = await sdk.get_session_history("chat-1")
        assert [(one.task_id, one.query, one.result, one.status) for one in history] == [
            (first.task_id, "Who?", "[]", "COMPLETED"),
            (second.task_id, "And then?", second.result, "COMPLETED"),
        ]
        turns, count = await sdk.get_session_events("chat-1")
        assert count == 2
        assert [(one.turn, one.task_id, one.user_query, one.final_output) for one in turns] == [
            (1, first.task_id, "Who?", "[]"),
            (2, second.task_id, "And then?", second.result),
        ]
        for turn in turns:
            stored = await sdk.get_task_events(turn.task_id)
            assert [(one.type, one.seq, one.timestamp, one.stream_id) for one in turn.events] == [
                (one.type, one.seq, one.timestamp, one.stream_id) for one in stored
            ]
            assert (turn.events[0].type, turn.events[-1].type) == ("WORKFLOW_STARTED", "STREAM_END")


async def test_the_vendors_sdk_titles_lists_and_deletes_sessions(shannon: Shannon):
    async with sdk_of(shannon) as sdk:
        for name in ("chat-1", "chat-2"):
            handle = await sdk.submit_task(f"About {name}", session_id=name, mode="complex", context=AT_ONCE)
            await sdk.wait(handle.task_id, poll_interval=0.05)
        assert await sdk.update_session_title("chat-1", "Tides")
        with pytest.raises(ValidationError):
            await sdk.update_session_title("chat-1", "x" * 61)
        sessions, total = await sdk.list_sessions()
        assert total == 2
        assert [(one.session_id, one.title, one.message_count) for one in sessions] == [
            ("chat-2", None, 1),
            ("chat-1", "Tides", 1),
        ]
        assert (sessions[1].latest_task_query, sessions[1].latest_task_status) == ("About chat-1", "COMPLETED")
        assert (sessions[1].successful_tasks, sessions[1].first_task_mode, sessions[1].is_active) == (
            1,
            "complex",
            True,
        )
        assert await sdk.delete_session("chat-1")
        assert await sdk.delete_session("chat-1")
        with pytest.raises(SessionNotFoundError):
            await sdk.get_session("chat-1")
        with pytest.raises(SessionNotFoundError):
            await sdk.delete_session("never")
        sessions, total = await sdk.list_sessions()
        assert ([one.session_id for one in sessions], total) == (["chat-2"], 1)


async def test_a_session_counts_what_its_tasks_used_and_how_they_ended(shannon: Shannon):
    usage: Json = {"provider": "openai", "model": "m", "input_tokens": 200, "output_tokens": 100, "cost": 0.25}
    steps: list[Json] = [{"usage": usage}]
    done = await shannon.begun(*steps, {"complete": "Done"}, session_id="s1", research_strategy="deep", mode="simple")
    failed = await shannon.begun(*steps, {"fail": {"code": "no", "message": "No."}}, session_id="s1", query="second")
    await shannon.ended(done)
    await shannon.ended(failed)
    asked = await shannon.begun({"ask": "Which?"}, session_id="s1", query="third")
    await shannon.until(asked, "waiting_for_input")
    (item,) = await listed(shannon)
    assert {name: item[name] for name in item if not name.endswith("_at")} == {
        "session_id": "s1",
        "user_id": "dev",
        "context": {"external_id": "s1"},
        "task_count": 3,
        "tokens_used": 600,
        "is_active": True,
        "successful_tasks": 1,
        "failed_tasks": 1,
        "success_rate": 1 / 3,
        "total_cost_usd": 0.5,
        "average_cost_per_task": 0.5 / 3,
        "is_near_budget_limit": False,
        "latest_task_query": "third",
        "latest_task_status": "RUNNING",
        "is_research_session": True,
        "first_task_mode": "simple",
    }
    body = await read(shannon, "/s1")
    assert (body["task_count"], body["tokens_used"], body["cost_usd"]) == (3, 600, 0.5)
    assert (body["is_research_session"], body["research_strategy"]) == (True, "deep")
    assert body["created_at"] == item["created_at"]
    history = told((await read(shannon, "/s1/history"))["tasks"])
    assert [one["status"] for one in history] == ["COMPLETED", "FAILED", "RUNNING"]
    assert history[1]["error_message"] == "No."
    assert [one["total_tokens"] for one in history] == [300, 300, 0]
    assert ["completed_at" in one for one in history] == [True, True, False]


async def test_sessions_come_newest_first_in_pages_and_a_bad_limit_is_the_default(shannon: Shannon):
    for n in range(5):
        await talk(shannon, f"s{n}", "a")
    await talk(shannon, "s0", "again")

    async def names(**query: str) -> list[Json]:
        return [one["session_id"] for one in await listed(shannon, **query)]

    assert await names() == ["s4", "s3", "s2", "s1", "s0"]
    assert await names(limit="2", offset="1") == ["s3", "s2"]
    assert await names(offset="5") == await names(offset="9" * 18) == []
    for bad in ("0", "101", "-1", "x", "1e9", "9" * 30):
        assert await names(limit=bad) == await names(offset=bad if bad != "0" and bad != "101" else "-1")
    assert (await read(shannon, "", limit="1"))["total_count"] == 5


async def test_turns_come_in_pages_and_their_numbers_are_the_sessions(shannon: Shannon):
    tasks = await talk(shannon, "s1", *"abcde")
    page = await read(shannon, "/s1/events", limit="2", offset="2")
    assert page["count"] == 5
    assert [(one["turn"], one["task_id"]) for one in told(page["turns"])] == [(3, tasks[2]), (4, tasks[3])]
    assert (await read(shannon, "/s1/events", offset="5"))["turns"] == []
    for bad in ({"limit": "0"}, {"limit": "101"}, {"offset": "-1"}, {"limit": "x"}):
        answer = await shannon.api.client.get(f"{SESSIONS}/s1/events", params=bad)
        (name,) = bad
        assert (answer.status_code, answer.json()) == (400, {"error": f"Invalid {name} parameter"})
    answer = await shannon.api.client.get(f"{SESSIONS}/two%20words/events")
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid session_id format"})


async def test_a_turns_events_have_their_times_and_no_pieces_of_text(shannon: Shannon):
    steps: list[Json] = [{"say": "Some text, "}, {"tool": "search", "output": {"found": 3}}, {"complete": "Done"}]
    task_id = await shannon.begun(*steps, session_id="s1", context={"attachments": [ATTACHED]})
    await shannon.ended(task_id)
    (turn,) = told((await read(shannon, "/s1/events"))["turns"])
    events = told(turn["events"])
    assert all(datetime.fromisoformat(str(one["timestamp"])).tzinfo for one in events)
    assert "LLM_PARTIAL" not in {one["type"] for one in events}
    assert not any("payload" in one for one in events)
    metadata = msgspec.convert(turn["metadata"], dict[str, Json])
    assert metadata["agents_involved"] == ["simulator"]
    assert metadata["attachments"] == [ATTACHED]
    (whole,) = told((await read(shannon, "/s1/events", include_payload="true"))["turns"])
    observed = next(one for one in told(whole["events"]) if one["type"] == "TOOL_OBSERVATION")
    assert msgspec.json.decode(str(observed["payload"]))["output"] == {"found": 3}


async def test_a_turn_that_no_worker_took_has_events_all_the_same(shannon: Shannon):
    await shannon.api.client.post(f"{PREFIX}/api/v1/tasks", json={"query": "x", "session_id": "s1"})
    (turn,) = told((await read(shannon, "/s1/events"))["turns"])
    assert isinstance(turn["events"], list)
    assert turn["final_output"] == "" or isinstance(turn["final_output"], str)


async def test_too_many_events_for_one_answer_are_refused(shannon: Shannon, monkeypatch: pytest.MonkeyPatch):
    await talk(shannon, "s1", "a", "b")
    monkeypatch.setattr(shannon_session_routes, "MAX_EVENTS", 9)
    answer = await shannon.api.client.get(f"{SESSIONS}/s1/events")
    assert (answer.status_code, answer.json()) == (413, {"error": "Too many events: ask for fewer turns by limit"})
    assert len(told((await read(shannon, "/s1/events", limit="1"))["turns"])) == 1


async def test_a_long_history_is_its_newest_part_in_order(shannon: Shannon, monkeypatch: pytest.MonkeyPatch):
    tasks = await talk(shannon, "s1", *"abcdefg")
    monkeypatch.setattr(shannon_session_routes, "AT_ONCE", 2)
    assert [one["task_id"] for one in told((await read(shannon, "/s1/history"))["tasks"])] == tasks
    monkeypatch.setattr(shannon_session_routes, "MAX_HISTORY", 4)
    history = await read(shannon, "/s1/history")
    assert [one["task_id"] for one in told(history["tasks"])] == tasks[3:]
    assert (history["session_id"], history["total"]) == ("s1", 7)
    monkeypatch.setattr(shannon_session_routes, "MAX_BYTES", 10)
    assert [one["task_id"] for one in told((await read(shannon, "/s1/history"))["tasks"])] == tasks[-1:]


async def test_a_large_result_is_whole_in_history_and_turns(shannon: Shannon):
    large = "x" * 300_000
    await talk(shannon, "s1", large)
    (past,) = told((await read(shannon, "/s1/history"))["tasks"])
    (turn,) = told((await read(shannon, "/s1/events"))["turns"])
    assert past["result"] == turn["final_output"] == large


async def title(shannon: Shannon, body: object, session_id: str = "s1") -> httpx.Response:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await shannon.api.client.patch(f"{SESSIONS}/{quote(session_id, safe='')}", content=content)


async def test_a_title_is_trimmed_cleaned_and_kept_once(shannon: Shannon):
    await talk(shannon, "s1", "a")
    answer = await title(shannon, {"title": "  Tides\r\n and\0 moons\t "})
    assert (answer.status_code, answer.json()) == (200, {"session_id": "s1", "title": "Tides and moons"})
    assert (await title(shannon, {"title": "Tides and moons"})).status_code == 200
    assert (await title(shannon, {"title": "é" * 60})).json()["title"] == "é" * 60
    assert (await read(shannon, "/s1"))["title"] == (await listed(shannon))[0]["title"] == "é" * 60
    facts = [msgspec.json.decode(one)["fact"] for one in await facts_of_sessions(shannon.api)]
    assert facts == [
        {"type": "session.titled", "title": "Tides and moons", "session_id": "s1"},
        {"type": "session.titled", "title": "é" * 60, "session_id": "s1"},
    ]


NO_TITLES: list[tuple[object, str]] = [
    ({"title": ""}, "Title cannot be empty"),
    ({"title": " \t\n\x7f "}, "Title cannot be empty"),
    ({}, "Title cannot be empty"),
    ({"title": None}, "Title cannot be empty"),
    ({"title": "x" * 61}, "Title must be 60 characters or less"),
    ({"title": 7}, "Invalid request body"),
    ([], "Invalid request body"),
    (b"", "Invalid request body"),
    (b"\xff", "Invalid request body"),
    (b"[" * 100_000, "Invalid request body"),
]


async def test_what_is_no_title_is_refused_and_leaves_nothing(shannon: Shannon):
    await shannon.begun({"complete": "a"}, session_id="s1")
    for body, error in NO_TITLES:
        answer = await title(shannon, body)
        assert answer.status_code == 400, body
        assert answer.json()["error"].startswith(error), body
    assert await facts_of_sessions(shannon.api) == []


async def test_a_deleted_session_is_gone_and_its_tasks_are_not(shannon: Shannon):
    (task_id,) = await talk(shannon, "s1", "a")
    await title(shannon, {"title": "Trip"})
    for _ in range(2):
        answer = await shannon.api.client.delete(f"{SESSIONS}/s1")
        assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/history", "/events"):
        answer = await shannon.api.client.get(f"{SESSIONS}/s1{path}")
        assert (answer.status_code, answer.json()) == (404, NOT_FOUND)
    assert (await title(shannon, {"title": "Rome"})).status_code == 404
    assert await listed(shannon) == []
    assert (await shannon.get(task_id))["result"] == "a"
    assert len(await facts_of_sessions(shannon.api)) == 2


async def test_a_task_after_the_deletion_begins_the_session_anew(remembering: Shannon):
    shannon = remembering
    await talk(shannon, "s1", "secret", query="one")
    await title(shannon, {"title": "Trip"})
    await shannon.api.client.delete(f"{SESSIONS}/s1")
    task_id = await shannon.begun(query="two", session_id="s1")
    # Nothing of what was deleted is told to an agent again.
    assert (await shannon.ended(task_id))["result"] == "[]"
    (item,) = await listed(shannon)
    assert (item["session_id"], item["task_count"], "title" in item) == ("s1", 1, False)
    assert [one["query"] for one in told((await read(shannon, "/s1/history"))["tasks"])] == ["two"]
    assert (await shannon.api.client.delete(f"{SESSIONS}/s1")).status_code == 204
    assert await listed(shannon) == []


async def test_another_owners_session_does_not_exist(shannon: Shannon):
    api = shannon.api
    await talk(shannon, "s1", "a")
    await api.rooms.tokens.add("tt_eve", Owner("eve"), ("tasks:read", "tasks:write"))
    async with httpx.AsyncClient(base_url=api.url, headers={"X-API-Key": "tt_eve"}) as eve:
        for session_id in ("s1", "never"):
            for path in ("", "/history", "/events"):
                answer = await eve.get(f"{SESSIONS}/{session_id}{path}")
                assert (answer.status_code, answer.json()) == (404, NOT_FOUND)
            answer = await eve.patch(f"{SESSIONS}/{session_id}", json={"title": "Hers"})
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND)
            answer = await eve.delete(f"{SESSIONS}/{session_id}")
            assert (answer.status_code, answer.json()) == (404, NOT_FOUND)
        assert (await eve.get(SESSIONS)).json() == {"sessions": [], "total_count": 0}
    assert await facts_of_sessions(api) == []
    assert (await read(shannon, "/s1"))["task_count"] == 1


async def test_a_token_that_only_reads_changes_nothing(shannon: Shannon):
    await talk(shannon, "s1", "a")
    await shannon.api.rooms.tokens.add("tt_reads", Owner("dev"), ("tasks:read",))
    await shannon.api.rooms.tokens.add("tt_writes", Owner("dev"), ("tasks:write",))
    async with httpx.AsyncClient(base_url=shannon.api.url) as client:
        reads, writes = {"X-API-Key": "tt_reads"}, {"X-API-Key": "tt_writes"}
        assert (await client.get(f"{SESSIONS}/s1", headers=reads)).status_code == 200
        assert (await client.patch(f"{SESSIONS}/s1", json={"title": "x"}, headers=reads)).status_code == 403
        assert (await client.delete(f"{SESSIONS}/s1", headers=reads)).status_code == 403
        assert (await client.get(SESSIONS, headers=writes)).status_code == 403
        assert (await client.get(SESSIONS)).json() == {"error": "Unauthorized"}
    assert await facts_of_sessions(shannon.api) == []


async def test_whatever_a_session_is_called_it_is_found_titled_and_deleted(shannon: Shannon):
    for session_id in ODD:
        await shannon.begun(session_id=session_id)
    assert [one["session_id"] for one in await listed(shannon)] == ODD[::-1]
    for n, session_id in enumerate(ODD):
        path = f"/{quote(session_id, safe='')}"
        assert (await read(shannon, path))["session_id"] == session_id
        assert (await title(shannon, {"title": f"No. {n}"}, session_id)).status_code == 200
        assert [one["total"] for one in [await read(shannon, f"{path}/history")]] == [1]
        assert (await shannon.api.client.delete(f"{SESSIONS}{path}")).status_code == 204
        assert (await shannon.api.client.get(f"{SESSIONS}{path}")).status_code == 404
    assert await listed(shannon) == []


NO_SESSIONS = ["/%FF", "/%00", "/..", "/s1%0D%0AX-Evil:%201", "/" + "x" * 4_000, "/%F0%9F", "/*", "/a/b"]


async def test_a_path_that_names_no_session_is_not_found(shannon: Shannon):
    for path in NO_SESSIONS:
        for method in ("GET", "DELETE"):
            wire = await Wire.ask(shannon.api.url, f"{SESSIONS}{path}", shannon.api.bearer, method=method)
            assert (await wire.head()).status in (400, 404, 405), path
            assert "x-evil" not in wire.headers
            wire.writer.close()
    assert await facts_of_sessions(shannon.api) == []


async def test_the_audit_has_a_sessions_facts_among_the_tasks(shannon: Shannon):
    await talk(shannon, "two words", "a")
    await title(shannon, {"title": "Trip"}, "two words")
    await shannon.api.client.delete(f"{SESSIONS}/two%20words")
    answer = await shannon.api.client.get("/events", params={"type": "session.titled,session.deleted"})
    facts = [one["record"]["fact"] for one in answer.json()["data"]]
    assert facts == [
        {"type": "session.titled", "title": "Trip", "session_id": "two words"},
        {"type": "session.deleted", "session_id": "two words"},
    ]


async def test_without_views_sessions_are_not_available_and_tasks_are(nats_address: NatsAddress):
    async with running(nats_address) as api:
        for path in ("", "/s1", "/s1/history", "/s1/events"):
            answer = await api.client.get(f"{SESSIONS}{path}")
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
        assert (await api.client.delete(f"{SESSIONS}/s1")).status_code == 503


async def test_a_mode_that_is_another_apis_is_none_of_shannons(shannon: Shannon):
    client = shannon.api.client
    begun = await client.post("/v1/public/execute", json={"instruction": '{"steps": [{"ask": "For whom?"}]}'})
    conversation = begun.json()["conversation_id"]
    (session,) = (await client.get(f"{PREFIX}/api/v1/sessions")).json()["sessions"]
    assert (session["session_id"], session["first_task_mode"]) == (conversation, "")
    (task,) = (await client.get(f"{PREFIX}/api/v1/sessions/{conversation}/history")).json()["tasks"]
    assert "mode" not in task
