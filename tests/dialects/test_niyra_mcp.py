"""Niyra's tools over MCP, by the official client, old and new, and by hand where it would not do such a thing."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import httpx2
import msgspec
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from app.dialects.niyra import Planned
from eventstore.connection import NatsAddress
from eventstore.events import Json
from eventstore.tokens import Plan, Scope
from tests.api import DEV
from tests.dialects.niyra import TASKS, Niyra, scenario, speaking
from tests.worker.house import SOON_S

TOOLS = {"niyra_execute", "niyra_ask", "niyra_get_task"}
ERAS = [("legacy", "/mcp"), ("2026-07-28", "/niyra/mcp"), ("auto", "/mcp")]
LONG_S = 3_600
BY_HAND = {
    "Accept": "application/json, text/event-stream",
    "Content-Type": "application/json",
    "MCP-Protocol-Version": "2025-06-18",
}


@pytest.fixture
async def niyra(nats_address: NatsAddress, tmp_path: Path) -> AsyncGenerator[Niyra]:
    async with speaking(nats_address, tmp_path) as niyra:
        yield niyra


@asynccontextmanager
async def client(niyra: Niyra, era: str = "auto", *, token: str | None = None, path: str = "/mcp"):
    headers = {"Authorization": f"Bearer {token or niyra.api.token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
        transport = streamable_http_client(niyra.api.url + path, http_client=http)
        async with Client(transport, mode=era) as client:
            yield client


def said(result: CallToolResult) -> dict[str, Json]:
    return msgspec.convert(result.structured_content, dict[str, Json])


@pytest.mark.parametrize(("era", "path"), ERAS)
async def test_the_official_client_lists_and_calls_the_three_tools(niyra: Niyra, era: str, path: str):
    """The client holds each answer against the tool's output schema itself."""
    async with client(niyra, era, path=path) as mcp:
        listed = {tool.name: tool for tool in (await mcp.list_tools()).tools}
        assert listed.keys() == TOOLS
        for tool in listed.values():
            assert tool.input_schema["type"] == "object"
            assert tool.output_schema is not None
            assert tool.output_schema["type"] == "object"
            assert tool.description
        done = await mcp.call_tool(
            "niyra_execute", {"instruction": scenario({"tool": "search"}, {"complete": "Sent."})}
        )
        body = said(done)
        assert not done.is_error
        assert (body["result"], body["tools_used"], body["terminal"]) == ("Sent.", ["search"], True)
        answered = said(await mcp.call_tool("niyra_ask", {"question": scenario({"complete": "Two."})}))
        assert (answered["answer"], answered["task_id"]) == ("Two.", None)
        polled = said(await mcp.call_tool("niyra_get_task", {"task_id": body["task_id"]}))
        assert (polled["status"], polled["result"]) == ("complete", "Sent.")
        assert polled == await niyra.poll(str(body["task_id"]))


async def test_a_conversation_and_a_plan_go_on_over_mcp(niyra: Niyra):
    async with client(niyra) as mcp:
        steps = scenario({"tool": "gmail_send"}, {"complete": "Sent."})
        planned = said(await mcp.call_tool("niyra_execute", {"instruction": steps, "approval_mode": "confirm"}))
        assert [step.tool for step in msgspec.convert(planned["plan"], list[Planned])] == ["gmail_send"]
        confirmed = {"confirmed_task_id": planned["pending_task_id"]}
        done = said(await mcp.call_tool("niyra_execute", confirmed))
        assert (done["result"], done["task_id"]) == ("Sent.", planned["task_id"])
        again = {"instruction": scenario({"complete": "Yes."}), "conversation_id": done["conversation_id"]}
        assert said(await mcp.call_tool("niyra_execute", again))["conversation_id"] == done["conversation_id"]


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_what_is_asked_wrongly_is_a_tools_error_in_the_vendors_words(niyra: Niyra, era: str):
    async with client(niyra, era) as mcp:
        wrong: list[tuple[str, dict[str, Json], str]] = [
            ("niyra_execute", {}, "invalid_request"),
            ("niyra_execute", {"instruction": "x" * 8_001}, "invalid_request"),
            ("niyra_execute", {"instruction": "x", "approval_mode": "never"}, "invalid_request"),
            ("niyra_execute", {"confirmed_task_id": f"task_{uuid4()}"}, "not_found"),
            ("niyra_ask", {"question": 3}, "invalid_request"),
            ("niyra_get_task", {"task_id": f"task_{uuid4()}"}, "not_found"),
            ("niyra_get_task", {"task_id": "nobody's"}, "not_found"),
            ("niyra_get_task", {}, "invalid_request"),
            ("niyra_undo", {}, "invalid_request"),
        ]
        for tool, arguments, code in wrong:
            result = await mcp.call_tool(tool, arguments)
            assert result.is_error
            assert said(result)["error"] == code, (tool, arguments)


async def test_each_tool_needs_its_scope(niyra: Niyra):
    scopes: dict[str, tuple[Scope, dict[str, Json]]] = {
        "niyra_execute": ("niyra:execute", {"instruction": scenario({"complete": "x"})}),
        "niyra_ask": ("niyra:ask", {"question": scenario({"complete": "x"})}),
        "niyra_get_task": ("niyra:tasks:read", {"task_id": f"task_{uuid4()}"}),
    }
    async with niyra.bearer("tt_audits", "audit"), client(niyra, token="tt_audits") as mcp:
        for tool, (scope, arguments) in scopes.items():
            refused = said(await mcp.call_tool(tool, arguments))
            assert (refused["error"], refused["scope"]) == ("insufficient_scope", scope)
    async with niyra.bearer("tt_asks", "niyra:ask"), client(niyra, token="tt_asks") as mcp:
        assert not (await mcp.call_tool("niyra_ask", scopes["niyra_ask"][1])).is_error


async def test_another_owners_task_reads_as_one_that_is_not(niyra: Niyra):
    done = (await niyra.execute({"complete": "mine"})).json()
    async with niyra.bearer("tt_eve", "tasks:read", owner="eve"), client(niyra, token="tt_eve") as mcp:
        foreign = said(await mcp.call_tool("niyra_get_task", {"task_id": done["task_id"]}))
        unknown = said(await mcp.call_tool("niyra_get_task", {"task_id": f"task_{uuid4()}"}))
    assert foreign == unknown


async def test_without_a_token_nobody_is_told_anything(niyra: Niyra):
    for headers in ({}, {"Authorization": "Bearer tt_nobody"}):
        async with httpx.AsyncClient(base_url=niyra.api.url, headers=BY_HAND | headers) as http:
            answer = await http.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
            assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")


async def test_a_call_draws_on_the_budget_of_its_tool_and_a_refused_one_says_when_there_is_room_again(niyra: Niyra):
    await niyra.api.rooms.tokens.add("tt_poor", DEV, ("tasks:read",), plan=Plan(limits={"niyra.poll": 2}))
    wanted = {"task_id": f"task_{uuid4()}"}
    async with client(niyra, token="tt_poor") as mcp:
        codes = [said(await mcp.call_tool("niyra_get_task", wanted))["error"] for _ in range(3)]
    assert codes == ["not_found", "not_found", "rate_limit_exceeded"]
    over_http = await niyra.api.client.get(f"{TASKS}/{wanted['task_id']}", headers={"Authorization": "Bearer tt_poor"})
    assert (over_http.status_code, over_http.headers["X-RateLimit-Remaining"]) == (429, "0")


async def test_every_answer_of_mcp_tells_how_the_token_stands_as_the_route_does(niyra: Niyra):
    plan = Plan(limits={"niyra.poll": 2, "niyra.execute": 9})
    await niyra.api.rooms.tokens.add("tt_counted", DEV, ("tasks:read",), plan=plan)
    wanted: Json = {"name": "niyra_get_task", "arguments": {"task_id": f"task_{uuid4()}"}}
    async with httpx.AsyncClient(base_url=niyra.api.url, headers={"Authorization": "Bearer tt_counted"}) as http:

        async def told(method: str, params: Json) -> tuple[str, str, str]:
            message: Json = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = await http.post("/mcp", json=message, headers=BY_HAND)
            standing = [answer.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset")]
            assert int(standing[2]) > 0
            return standing[0], standing[1], answer.text

        assert (await told("tools/call", {"name": "niyra_execute", "arguments": {"instruction": "x"}}))[:2] == (
            "9",
            "8",
        )
        assert (await told("tools/call", wanted))[:2] == ("2", "1")
        over_http = await http.get(f"{TASKS}/task_{uuid4()}")
        assert over_http.headers["X-RateLimit-Remaining"] == "0"
        limit, left, text = await told("tools/call", wanted)
        assert (limit, left, "rate_limit_exceeded" in text) == ("2", "0", True)
        # What calls no tool costs nothing, and is told what there is.
        assert (await told("tools/list", {}))[0] == "600"
        assert "X-RateLimit-Limit" in (await http.post("/mcp", content=b"{", headers=BY_HAND)).headers


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_a_caller_that_goes_away_ends_the_waiting_and_never_the_task(niyra: Niyra, era: str):
    async with client(niyra, era) as mcp:
        asked = {"instruction": scenario({"tool": "search"}, {"ask": "Which one?"}, {"complete": "done"})}
        calling = asyncio.ensure_future(mcp.call_tool("niyra_execute", asked))
        (task_id,) = await niyra.waiting_for_input(1)
        calling.cancel()
        await asyncio.wait({calling})
        assert (await niyra.poll(task_id))["status"] == "running"
        answer = await niyra.api.client.post(f"/tasks/{task_id}/messages", json={"text": "the blue one"})
        assert answer.status_code == 200
        assert (await niyra.ended(task_id))["result"] == "done"


async def test_who_waits_is_answered_when_the_process_is_told_to_stop(niyra: Niyra):
    async with client(niyra) as mcp:
        asked = {"instruction": scenario({"ask": "Which one?"})}
        calling = asyncio.ensure_future(mcp.call_tool("niyra_execute", asked))
        posting = asyncio.ensure_future(niyra.execute({"ask": "Which one?"}))
        await niyra.waiting_for_input(2)
        niyra.api.rooms.drain()
        async with asyncio.timeout(SOON_S):
            bodies = said(await calling), (await posting).json()
    for body in bodies:
        assert (body["status"], body["terminal"]) == ("running", False)


async def test_what_is_no_request_is_refused_and_leaves_nothing_behind(niyra: Niyra):
    http = niyra.api.client
    call: dict[str, Json] = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    none: dict[str, Json] = {"params": {}}
    deep: Json = "x"
    for _ in range(400):
        deep = [deep]
    wrong: list[httpx.Response] = [
        await http.post("/mcp", content=b"{", headers=BY_HAND),
        await http.post("/mcp", content=b"[" * 200_000, headers=BY_HAND),
        await http.post("/mcp", content=b"[" * 400 + b"]" * 400, headers=BY_HAND),
        await http.post("/mcp", content=b"\xff\xfe", headers=BY_HAND),
        await http.post("/mcp", json=[], headers=BY_HAND),
        await http.post("/mcp", json=call | none, headers=BY_HAND | {"MCP-Protocol-Version": "1999-01-01"}),
        await http.post("/mcp", json=call | none, headers=BY_HAND | {"Accept": "text/html"}),
        await http.post("/mcp", json=call | none, headers=BY_HAND | {"Origin": "https://evil.example"}),
        await http.post("/mcp", content=b"x" * 2_000_000, headers=BY_HAND),
        await http.get("/mcp", headers=BY_HAND),
        await http.delete("/mcp", headers=BY_HAND),
        await http.put("/mcp", headers=BY_HAND),
    ]
    assert [answer.status_code for answer in wrong if not 400 <= answer.status_code < 500] == []
    strange: list[Json] = [
        call | {"params": {"name": "niyra_execute", "arguments": {"instruction": deep}}},
        call | {"params": {"name": "niyra_execute", "arguments": "none"}},
        call | {"params": {"name": 7}},
        call | {"method": "tools/uncall"},
    ]
    for body in strange:
        answer = await http.post("/mcp", json=body, headers=BY_HAND)
        assert answer.status_code < 500, answer.text
        assert "Traceback" not in answer.text
        assert '"isError":true' in answer.text or '"error"' in answer.text
    del call["id"]
    nobodys = await http.post("/mcp", json=call, headers=BY_HAND)
    assert (nobodys.status_code, nobodys.content) == (202, b"")  # without an id it is a notification, of nothing here
    assert (await http.get("/tasks")).json()["data"] == []


async def test_a_page_of_another_site_may_not_call_and_our_own_may(niyra: Niyra):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    ours = {"Origin": niyra.api.url}
    assert (await niyra.api.client.post("/mcp", json=body, headers=BY_HAND | ours)).status_code == 200
    for theirs in ("https://evil.example", "http://[bad", "null"):
        refused = await niyra.api.client.post("/mcp", json=body, headers=BY_HAND | {"Origin": theirs})
        assert (refused.status_code, refused.json()["error"]) == (403, "origin_not_allowed")
        assert "scope" not in refused.text


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
async def test_a_message_of_another_kind_or_for_another_reader_is_refused_in_json_rpc(niyra: Niyra, version: str):
    content = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
    right = BY_HAND | {"MCP-Protocol-Version": version}
    kinds, readers = "application/json is wanted", "application/json and text/event-stream are wanted"
    for header, said, status, told in (
        ("Content-Type", "application/x-www-form-urlencoded", 415, kinds),  # curl's, where it is told none
        ("Content-Type", "application/jsonl", 415, kinds),
        ("Content-Type", "", 415, kinds),
        ("Accept", "text/html", 406, readers),
        ("Accept", "application/json", 406, readers),
        ("Accept", "", 406, readers),
    ):
        refused = await niyra.api.client.post("/mcp", content=content, headers=right | {header: said})
        assert (refused.status_code, refused.headers["Content-Type"]) == (status, "application/json"), refused.text
        body = refused.json()
        assert (body["jsonrpc"], body["id"], body["error"]["code"]) == ("2.0", None, -32_600)
        assert body["error"]["message"].startswith(f"{header}: {told}")
    for accepted in ({"Accept": "*/*"}, {"Content-Type": "application/json; charset=utf-8"}):
        answer = await niyra.api.client.post("/mcp", content=content, headers=right | accepted)
        assert answer.status_code not in (406, 415), answer.text
