"""What a process holds for those who ask, by many real requests at once: answers, and bodies."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

import app.bounding
import app.bounds
import app.telling
from app.auth import Principal
from app.bounds import LARGEST_ANSWER, Bound, Held
from app.settings import MIB, HttpSettings
from eventstore.blobs import JetStreamBlobs
from eventstore.connection import NatsAddress
from eventstore.events import Owner, TaskId
from eventstore.tokens import Scope
from tests.api import Api, running
from tests.lifecycle.commands import complete, start_run
from tests.log.logs import until
from tests.walk.wire import Wire

LARGE = 6 * MIB
NARROW = 8_192
SCOPES: tuple[Scope, ...] = ("tasks:read", "tasks:write", "audit")
SMALL_BODIES = HttpSettings(max_upload_bytes=3 * MIB, max_bodies_bytes=5 * MIB)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long where there is no room."""
    monkeypatch.setattr(app.bounds, "PATIENCE_S", 0.2)


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address, http=HttpSettings(max_answers_bytes=LARGEST_ANSWER)) as api:
        yield api


def someone(name: str) -> Principal:
    return Principal(owner=Owner(name), scopes=frozenset(), token_id=name, token_hash=name)


def refusal(answer: httpx.Response, status: int = 503) -> str:
    """What it says, if it says it so."""
    assert answer.status_code == status, answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    said = answer.json()
    return str(said.get("error_description") or said.get("error") or said["code"])


def nothing_held(api: Api) -> bool:
    return api.rooms.bounds.answers.held == api.rooms.bounds.bodies.held == 0


async def large_task(api: Api) -> TaskId:
    return await api.begin(start_run(), complete(result="x" * LARGE))


@asynccontextmanager
async def not_reading(api: Api, path: str, number: int, token: str = "") -> AsyncGenerator[list[Wire]]:
    """So many who ask, one after the other, and take no more of the answer than its head."""
    headers = {"Authorization": f"Bearer {token or api.token}"}
    wires: list[Wire] = []
    try:
        for _ in range(number):
            wires.append(await (await Wire.ask(api.url, path, headers, room_bytes=NARROW)).head())
        yield wires
    finally:
        for wire in wires:
            wire.reset()


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_large_answers_that_nobody_takes_leave_room_for_no_more_of_them_and_for_all_small_ones(api: Api):
    task_id, small = await large_task(api), await api.begin()
    bare = task_id.removeprefix("task_")
    async with not_reading(api, f"/tasks/{task_id}", 6) as wires:
        assert [wire.status for wire in wires[:4]] == [200] * 4
        assert {wire.status for wire in wires[4:]} == {503}
        assert api.rooms.bounds.answers.held == 4 * int(wires[0].headers["content-length"])
        assert refusal(await api.client.get(f"/tasks/{task_id}")) == "no_room"
        assert "as much in hand" in refusal(await api.client.get(f"/shannon/api/v1/tasks/{task_id}"))
        assert "as much in hand" in refusal(await api.client.get(f"/niyra/v1/public/tasks/{task_id}"))
        for what in ("summary", "result", "messages"):
            assert "as much in hand" in refusal(await api.client.get(f"/nanonets/v1/tasks/{bare}/{what}"))
        for what in (f"tasks/{task_id}/events", f"tasks/{task_id}/timeline", "sessions/s/history", "sessions/s/events"):
            assert "as much in hand" in refusal(await api.client.get(f"/shannon/api/v1/{what}"))
        known = {"If-None-Match": wires[0].headers["etag"]}
        assert (await api.client.get(f"/tasks/{task_id}", headers=known)).status_code == 304
        assert (await api.client.get(f"/tasks/{small}")).status_code == 200
        begun = await api.client.post("/tasks", json={"input": "x"})
        assert begun.status_code == 201
        assert (await api.client.post(f"{begun.headers['Location']}/cancel")).status_code == 200
    await until(lambda: nothing_held(api))
    assert len((await api.client.get(f"/tasks/{task_id}")).json()["result"]) == LARGE
    assert api.metric("http_requests_total", status="500") == 0


async def test_a_burst_of_large_answers_is_answered_as_they_are_taken(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app.bounds, "PATIENCE_S", 30)
    task_id = await large_task(api)
    most, answers = 0, api.rooms.bounds.answers

    async def asked() -> int:
        nonlocal most
        answer = await api.client.get(f"/tasks/{task_id}")
        most = max(most, answers.held)
        return answer.status_code

    assert await asyncio.gather(*(asked() for _ in range(10))) == [200] * 10
    assert 0 < most <= answers.most
    await until(lambda: nothing_held(api))


async def test_whoever_takes_too_little_of_an_answer_is_dropped(api: Api, monkeypatch: pytest.MonkeyPatch):
    task_id = await large_task(api)
    for name, seconds in (("TAKEN_S", 0.3), ("STALLED_S", 0.3)):
        with monkeypatch.context() as patience:
            patience.setattr(app.bounding if name == "TAKEN_S" else app.telling, name, seconds)
            async with not_reading(api, f"/tasks/{task_id}", 1):
                await until(lambda: nothing_held(api))


async def test_what_was_done_is_told_so_where_there_is_no_room_to_show_it(api: Api):
    task_id = await large_task(api)
    begun = await api.client.post("/tasks", json={"input": "y" * 900_000})
    large = begun.json()["task_id"]
    async with not_reading(api, f"/tasks/{task_id}", 5):
        filler = Held(api.rooms.bounds.answers, await api.rooms.bearers.authenticate(api.token))
        await filler.more(api.rooms.bounds.answers.most - api.rooms.bounds.answers.held)
        answer = await api.client.post(f"/tasks/{large}/cancel")
        filler.keep(0)
        assert refusal(answer) == "no_room"
        assert answer.json()["task_id"] == large
        assert "is done" in answer.json()["detail"]
    await until(lambda: nothing_held(api))
    assert (await api.client.get(f"/tasks/{large}")).json()["status"] == "cancelled"


async def test_one_owner_leaves_room_for_others_and_nobody_keeps_it_who_has_left():
    bound = Bound(100, largest=10)
    ann, bob = (someone(name) for name in ("ann", "bob"))
    await bound.take(ann, 20)
    waiting = asyncio.ensure_future(bound.take(ann, 10))
    await bound.take(bob, 25)
    left = asyncio.ensure_future(bound.take(ann, 5 + 1))
    await asyncio.sleep(0)
    left.cancel()
    bound.give_back(Owner("ann"), 20)
    await waiting
    assert bound.held == 35
    with pytest.raises(app.bounds.NoRoom):
        await bound.take(bob, 1)
    bound.give_back(Owner("ann"), 10)
    bound.give_back(Owner("bob"), 25)
    assert bound.held == 0


async def test_one_owner_leaves_others_places_to_wait_for_room():
    bound = Bound(100, largest=10)
    ann, bob = (someone(name) for name in ("ann", "bob"))
    for owner in (ann, bob):
        await bound.take(owner, 25)
    waiting = [asyncio.ensure_future(bound.take(ann, 25)) for _ in range(app.bounds.MAX_WAITING)]
    await asyncio.sleep(0)
    last = asyncio.ensure_future(bound.take(bob, 25))
    await asyncio.sleep(0)
    bound.give_back(Owner("bob"), 25)
    await last
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(one, app.bounds.NoRoom) for one in told)


# --- bodies -----------------------------------------------------------------------------------------------------------

JSON = "application/json"
MULTIPART = "multipart/form-data; boundary=b"
DOORS = [("/tasks", JSON), ("/v1/public/execute", JSON), ("/mcp", JSON), ("/shannon/api/v1/tasks", JSON)]
FORM = ("/nanonets/v1/agents/simulator/run", MULTIPART)


async def half(api: Api, path: str, kind: str, length: int | None) -> Wire:
    """Somebody who said how much they would send (None: who does not say), and sends a little of it."""
    size = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    headers = {"Authorization": f"Bearer {api.token}", "Content-Type": kind, "Accept": "*/*", **size}
    wire = await Wire.ask(api.url, path, headers, method="POST")
    wire.writer.write(b'{"input": "' if length else b'b\r\n{"input": "\r\n')
    return wire


async def test_halves_of_large_bodies_leave_room_for_no_more_of_them_and_leave_nothing_behind(
    nats_address: NatsAddress,
):
    async with running(nats_address, http=SMALL_BODIES) as api:
        bodies = api.rooms.bounds.bodies
        last = await api.rooms.tasks.log.last_sequence()
        async with AsyncExitStack() as leaving:
            for path, kind in (*DOORS, FORM):
                wire = await half(api, path, kind, 900_000)
                leaving.callback(wire.reset)
            await until(lambda: bodies.held == 4_500_000)
            for path, kind in (*DOORS, FORM):
                wire = await (await half(api, path, kind, 900_000)).head()
                leaving.callback(wire.reset)
                assert (wire.status, wire.headers["retry-after"]) == (503, "2"), path
                said = json.loads(await wire.reader.readexactly(int(wire.headers["content-length"])))
                assert "nothing was done" in json.dumps(said), path
            assert (await api.client.get("/agents")).status_code == 200
            assert (await api.client.post("/tasks", json={"input": "small"})).status_code == 201
        await until(lambda: nothing_held(api))
        # The small one's, and nothing of the others.
        assert await api.rooms.tasks.log.last_sequence() == last + 1
        blobs = api.rooms.tasks.log.blobs
        assert isinstance(blobs, JetStreamBlobs)
        assert (await blobs.stream.state()).bytes == 0
        assert (await api.client.post("/tasks", json={"input": "y" * 900_000})).status_code == 201
        assert api.metric("http_requests_total", status="500") == 0


async def test_the_body_of_a_stream_s_request_which_nobody_reads_takes_no_room(api: Api):
    task_id = await api.begin()
    headers = api.bearer | {"Accept": "text/event-stream", "Content-Length": "99999999"}
    wire = await (await Wire.ask(api.url, f"/tasks/{task_id}/events", headers)).head()
    assert (wire.status, api.rooms.bounds.bodies.held) == (200, 0)
    wire.reset()


async def test_a_body_that_does_not_say_how_long_it_is_is_counted_as_it_comes(nats_address: NatsAddress):
    async with running(nats_address, http=SMALL_BODIES) as api:
        bodies = api.rooms.bounds.bodies
        filler = Held(bodies, await api.rooms.bearers.authenticate(api.token))
        await filler.more(bodies.most - 1_000)
        for path, kind in (*DOORS, FORM):
            wire = await half(api, path, kind, None)
            wire.writer.write(b"7d0\r\n" + b"x" * 2_000 + b"\r\n")
            await wire.head()
            assert (wire.status, wire.headers["retry-after"]) == (503, "2"), path
            wire.reset()
        filler.keep(0)
        await until(lambda: nothing_held(api))
        said = {"Content-Type": JSON}

        async def pieces() -> AsyncGenerator[bytes]:
            yield b'{"input": "'
            yield b"y" * 500_000
            yield b'"}'

        assert (await api.client.post("/tasks", content=pieces(), headers=said)).status_code == 201
        await until(lambda: nothing_held(api))
