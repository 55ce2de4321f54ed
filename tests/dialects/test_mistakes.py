"""Whatever is wrong in a body, in every dialect: a 400 in its shape that names the field and says what is wanted, in
words that are no library's."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Annotated

import httpx
import msgspec
import pytest
from msgspec import Meta, Struct
from msgspec import inspect as shapes

from app.dialects import nanonets, niyra, shannon_controls, shannon_review, shannon_session_routes, shannon_submission
from app.dialects.native import NewMessage, NewReview, NewTask, Why
from app.dialects.native_admin import NewToken, ToolSwitch
from app.dialects.niyra_mcp import WantedTask
from app.mistakes import converted, decoded
from app.problems import BadRequest
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import Json
from tests.api import Api, running
from tests.dialects.test_niyra_mcp import BY_HAND

ID = "00000000-0000-4000-8000-000000000000"
LIBRARY = re.compile(r"\$\.|Expected|regex|pydantic|`|\bstr\b|\bint\b|\bNone\b|NoneType|Struct|Invalid enum|\\S")
VALUES: list[Json] = [None, True, 3, -1, 1.5, "", " ", "x" * 9_000, "no such thing", [], [1], {}, {"a": 1}]


class Door(Struct, frozen=True, kw_only=True):
    """Where a body is sent, its struct, and what must be said beside the field in question."""

    path: str
    shape: type[Struct]
    right: dict[str, Json] = {}
    method: str = "POST"
    inside: str = ""


DOORS = [
    Door(path="/tasks", shape=NewTask),
    Door(path=f"/tasks/task_{ID}/messages", shape=NewMessage, right={"text": "x"}),
    Door(path=f"/tasks/task_{ID}/review", shape=NewReview, right={"approved": True}),
    Door(path=f"/tasks/task_{ID}/cancel", shape=Why),
    Door(path="/admin/tokens", shape=NewToken, right={"scopes": ["tasks:read"]}),
    Door(path="/admin/tools", shape=ToolSwitch, right={"tool": "x", "disabled": True}, method="PUT"),
    Door(path="/v1/public/execute", shape=niyra.NewExecution, right={"instruction": "x"}),
    Door(path="/v1/public/ask", shape=niyra.NewQuestion, right={"question": "x"}),
    Door(path="/nanonets/v1/agents/simulator/run", shape=nanonets.NewRun, right={"query": "x"}),
    Door(path="/nanonets/v1/agents/simulator/run", shape=nanonets.OutputConfig, inside="output_config"),
    Door(path=f"/nanonets/v1/tasks/{ID}/message", shape=nanonets.NewAnswer, right={"message": "x"}),
    Door(path="/shannon/api/v1/tasks", shape=shannon_submission.Submission, right={"query": "x"}),
    Door(path="/shannon/api/v1/approvals/decision", shape=shannon_controls.NewDecision),
    Door(path=f"/shannon/api/v1/swarm/task_{ID}/message", shape=shannon_controls.NewMessage, right={"message": "x"}),
    Door(path=f"/shannon/api/v1/tasks/task_{ID}/review", shape=shannon_review.NewWord),
    Door(path="/shannon/api/v1/sessions/s", shape=shannon_session_routes.NewTitle, method="PATCH"),
]
TOOLS: dict[str, type[Struct]] = {
    "niyra_execute": niyra.NewExecution,
    "niyra_ask": niyra.NewQuestion,
    "niyra_get_task": WantedTask,
}


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


def wrongs(shape: type[Struct]) -> list[tuple[str, Json]]:
    """Every field with each value that it does not take."""
    return [
        (field.encode_name, value)
        for field in msgspec.structs.fields(shape)
        for value in VALUES
        if not takes(field.type, value)
    ]


def takes(kind: object, value: Json) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def choices(shape: type[Struct], name: str) -> set[str]:
    """The words that the field may be, where there are only some."""
    (kind,) = [field.type for field in msgspec.structs.fields(shape) if field.encode_name == name]
    node = shapes.type_info(kind)
    kinds = node.types if isinstance(node, shapes.UnionType) else (node,)
    return {str(word) for one in kinds if isinstance(one, shapes.LiteralType) for word in one.values}


async def test_every_wrong_field_of_every_body_is_named_with_what_is_wanted(api: Api):
    # In one API: to begin one takes longer than all that is asked of it.
    for door in DOORS:
        await try_all(api, door)
    assert await api.arrivals() == []


async def try_all(api: Api, door: Door) -> None:
    for name, value in wrongs(door.shape):
        body: dict[str, Json] = door.right | {name: value}
        answer = await api.client.request(door.method, door.path, json={door.inside: body} if door.inside else body)
        is_told(answer, f"{door.inside}.{name}".lstrip("."), choices(door.shape, name))
    for content in (b"[]", b"3", b"{", b"", b"null", b"\xff"):
        if door.shape is not Why or content not in (b"", b"null"):  # it may be left out
            is_told(await api.client.request(door.method, door.path, content=content), "the body", set())


def is_told(answer: httpx.Response, name: str, words: set[str]) -> None:
    text = refusal(answer, 400)
    assert re.search(rf"(^|: ){re.escape(name)}(\[\d\]|\.\w+)*: ", text), text
    assert all(word in text for word in words), text
    assert not LIBRARY.search(answer.text), answer.text


async def test_what_is_too_large_is_told_its_bound_in_every_dialects_shape(nats_address: NatsAddress):
    http = HttpSettings(max_body_bytes=20_000, max_upload_bytes=50_000)
    large = "x" * 30_000
    bound = "a request has at most 20000 bytes"
    run, say = "/nanonets/v1/agents/simulator/run", f"/nanonets/v1/tasks/{ID}/message"
    aside, swarm = f"{bound}, its files aside", f"/shannon/api/v1/swarm/task_{ID}/message"
    files = [("files", ("a.txt", b"x" * 60_000))]
    async with running(nats_address, http=http) as api:

        async def told(path: str, status: int, content: bytes | AsyncGenerator[bytes]) -> str:
            answer = await api.client.post(path, content=content, headers=BY_HAND)
            return refusal(answer, status)

        async def in_pieces() -> AsyncGenerator[bytes]:
            for _ in range(30):
                yield b" " * 1_000

        for path, status, text in (
            *((path, 413, bound) for path in ("/tasks", f"/tasks/task_{ID}/messages", "/admin/tokens")),
            *((path, 413, bound) for path in ("/v1/public/execute", "/v1/public/ask", "/mcp")),
            *((path, 400, bound) for path in (run, say)),
            ("/shannon/api/v1/tasks", 413, aside),
            *((path, 413, bound) for path in (swarm, f"/shannon/api/v1/tasks/task_{ID}/cancel")),
        ):
            for content in (msgspec.json.encode({"query": large}), in_pieces()):
                assert await told(path, status, content) == text, path
        assert refusal(await api.client.post(run, data={"query": large}, files={"files": b"x"}), 400) == aside
        with_files = await api.client.post(run, data={"query": "x"}, files=files)
        assert refusal(with_files, 400) == "a request has at most 50000 bytes, its files included"
        assert await told("/shannon/api/v1/tasks", 413, b" " * 100_000) == "a request has at most 86666 bytes"
        assert await api.arrivals() == []


def refusal(answer: httpx.Response, status: int) -> str:
    """What is told, in the shape of whichever dialect."""
    assert answer.status_code == status, answer.text
    said = msgspec.json.decode(answer.content, type=dict[str, object])
    return str(said.get("error_description") or said.get("detail") or said["error"])


async def test_what_is_missing_and_what_is_one_too_many_is_named(api: Api):
    for path, body, told in (
        ("/tasks", {"agnet": "x"}, "agnet: there is no such field; there are: agent, input, title, "),
        ("/admin/tokens", {}, "scopes: is missing; must be a list of 1 to "),
        ("/v1/public/ask", {}, "question: is missing; must be a question of 1 to 4000 characters"),
        (f"/nanonets/v1/tasks/{ID}/message", {}, "message: is missing; must be a string, not all of it blank"),
        (
            "/shannon/api/v1/tasks",
            {"query": "x", "context": {"attachments": [{"data": 3}]}},
            "Invalid attachments: context.attachments[0].data: must be a string",
        ),
    ):
        answer = await api.client.post(path, json=body)
        assert (answer.status_code, told in answer.text) == (400, True), answer.text


@pytest.mark.parametrize("place", [" - at `$.x", "`$.x"])
async def test_a_field_whose_name_is_a_thousand_places_holds_up_nobody(api: Api, place: str):
    # Each of them would begin a look at all the rest: minutes, in which this process would answer nobody.
    name = place * (900_000 // len(place)) + "\n"
    async with asyncio.timeout(30):
        answer = await api.client.post("/tasks", json={"input": "x", name: 1})
    assert answer.status_code == 400
    assert "there is no such field; there are: agent, " in answer.text
    assert len(answer.content) < 1_000


async def test_a_word_that_looks_like_a_place_is_none(api: Api):
    body = {"instruction": "x", "approval_mode": " - at `$.x" * 9_000}
    answer = await api.client.post("/v1/public/execute", json=body)
    assert answer.json()["error_description"] == "approval_mode: must be one of auto, confirm, dry_run, or null"


async def test_a_program_finds_each_mistake_by_its_field(api: Api):
    answer = await api.client.post("/tasks", json={"max_failures": "many"})
    assert answer.json()["errors"] == [
        {"message": "must be a whole number of 1 to 100", "key": "max_failures", "source": "body"}
    ]
    both = await api.client.get("/tasks", params={"limit": "many", "q": "x" * 201})
    assert {(one["key"], one["source"]) for one in both.json()["errors"]} == {("limit", "query"), ("q", "query")}


async def test_every_wrong_argument_of_every_tool_is_named_with_what_is_wanted(api: Api):
    for tool, shape in TOOLS.items():
        for name, value in wrongs(shape):
            answer = await call(api, {"name": tool, "arguments": {name: value}})
            assert '"isError":true' in answer.text
            assert f"{name}: " in answer.text, answer.text
            assert all(word in answer.text for word in choices(shape, name))
            assert not LIBRARY.search(answer.text), answer.text


async def test_what_is_no_message_of_mcp_is_refused_in_the_same_words(api: Api):
    for params, told in (
        (3, "params: must be an object"),
        ({}, "params.name: is missing"),
        ({"name": 3}, "params.name: must be the name of a tool"),
        ({"name": "niyra_ask", "arguments": "x"}, "params.arguments: must be an object"),
    ):
        answer = await call(api, params)
        error = answer.json()["error"]
        assert (answer.status_code, answer.json()["id"], told in error["message"]) == (400, 7, True), answer.text
        assert error["code"] in (-32_600, -32_602)
    for content, code in ((b"{", -32_700), (b"[]", -32_600), (b'{"id": 1}', -32_600), (b'{"a":' * 9_000, -32_700)):
        answer = await api.client.post("/mcp", content=content, headers=BY_HAND)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        assert not LIBRARY.search(answer.text), answer.text


async def test_a_call_whose_id_is_none_is_refused_for_somebody_waits_for_its_answer(api: Api):
    for id in (None, True, 1.5, [1]):
        message: dict[str, Json] = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "niyra_ask"}}
        answer = await api.client.post("/mcp", json=message, headers=BY_HAND)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32_600), answer.text
        assert "id: must be a string, or a whole number" in answer.text


async def call(api: Api, params: Json) -> httpx.Response:
    message: dict[str, Json] = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    return await api.client.post("/mcp", json=message, headers=BY_HAND)


class Leaf(Struct):
    n: Annotated[int, Meta(ge=2)]


class Tree(Struct):
    leaves: dict[str, list[Leaf]]


DEEP: list[tuple[Json, str]] = [
    ({"leaves": {"a": [{"n": 2}, {"n": 1}]}}, "tree.leaves[1].n: must be a whole number of at least 2"),
    ({"leaves": {"a": [{}]}}, "tree.leaves[0].n: is missing; must be a whole number of at least 2"),
    ({"leaves": [3]}, "tree.leaves: must be an object"),
]


@pytest.mark.parametrize(("value", "told"), DEEP, ids=str)
def test_a_mistake_is_found_however_deep_it_is(value: Json, told: str):
    for read in (
        lambda: converted(value, Tree, at="tree"),
        lambda: decoded(msgspec.json.encode(value), Tree, at="tree"),
    ):
        with pytest.raises(BadRequest) as refused:
            read()
        assert str(refused.value) == told
