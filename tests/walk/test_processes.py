"""Two API processes on one log (two APIs in this one) tell one story, also when the log stands still or goes back."""

import asyncio
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.commands import CancelTask, ReceiveInput
from app.feed import RESET
from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.cursor import event_id
from eventstore.events import TaskId
from eventstore.server import EmbeddedServer
from tests.api import DEV, Api, running
from tests.lifecycle.commands import produce, start_run
from tests.log.logs import SOON_S, stopped, until
from tests.walk.wire import Wire

STREAM = {"Accept": "text/event-stream"}


@asynccontextmanager
async def two(nats: NatsAddress, http: HttpSettings) -> AsyncGenerator[tuple[Api, Api]]:
    async with running(nats, http=http) as one, running(nats, http=http) as other:
        yield one, other


async def version(api: Api, task_id: TaskId) -> int:
    answer = await api.client.get(f"/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["version"])


async def stream(api: Api, task_id: TaskId, last: str = "") -> Wire:
    headers = {**STREAM, **api.bearer, **({"Last-Event-ID": last} if last else {})}
    return await (await Wire.ask(api.url, f"/tasks/{task_id}/events", headers)).head()


async def test_what_one_process_acknowledged_the_other_shows(nats_address: NatsAddress):
    async with two(nats_address, HttpSettings(reads="strict")) as (one, other):
        assert await version(other, await one.begin()) == 1
        task_id = await one.begin()
        for said in range(2, 42):
            writer, poller = (one, other) if said % 2 else (other, one)
            answer = await writer.client.post(f"/tasks/{task_id}/messages", json={"text": "go on"})
            assert answer.json()["version"] == said
            assert await version(poller, task_id) == said


async def test_polls_never_go_back_whichever_process_they_meet(nats_address: NatsAddress):
    async with two(nats_address, HttpSettings(reads="strict")) as both:
        task_id = await both[0].begin()
        done = asyncio.Event()

        async def write() -> None:
            for n in range(150):
                await both[n % 2].tell(task_id, ReceiveInput(text="go on"))
            done.set()

        async def poll(at: int) -> int:
            seen = 0
            while not done.is_set():
                at += 1
                now = await version(both[at % 2], task_id)
                assert now >= seen
                seen = now
            return seen

        writing = asyncio.ensure_future(write())
        seen = await asyncio.gather(*[poll(at) for at in range(4)])
        await writing
        assert max(seen) > 20


async def test_an_etag_that_is_ahead_of_us_is_waited_for(nats_address: NatsAddress):
    async with two(nats_address, HttpSettings(reads="bounded")) as (one, other):
        task_id = await one.begin()
        assert await version(other, task_id) == 1
        for _ in range(40):
            said = await one.client.post(f"/tasks/{task_id}/messages", json={"text": "go on"})
            same = await other.client.get(f"/tasks/{task_id}", headers={"If-None-Match": said.headers["ETag"]})
            assert (same.status_code, same.headers["ETag"]) == (304, said.headers["ETag"])


async def test_a_stream_of_one_process_is_resumed_at_the_other(nats_address: NatsAddress):
    async with two(nats_address, HttpSettings(reads="bounded")) as both:
        task_id = await both[0].begin(start_run())
        frames, last = list[bytes](), ""
        for n in range(30):
            await both[n % 2].tell(task_id, produce("a", offset=n))
            wire = await stream(both[n % 2], task_id, last)
            frames += await wire.frames(3 if n == 0 else 1)
            last = frames[-1].partition(b"\n")[0].removeprefix(b"id: ").decode()
            wire.reset()
        assert frames == await both[0].frames(task_id)


async def test_a_log_that_stands_still_is_told_by_age_or_refused(server: EmbeddedServer):
    async with running(server.address) as api:
        task_id, left = await api.begin(), await api.begin()
        ended = await api.begin(CancelTask(by="ann"))
        with stopped(server):
            await until(lambda: not api.rooms.tasks.tail.proven)
            old, refused, fresh = await asyncio.gather(
                api.client.get(f"/tasks/{task_id}"),
                api.client.get(f"/tasks/{left}", headers={"Cache-Control": "no-cache"}),
                api.client.get(f"/tasks/{ended}", headers={"Cache-Control": "no-cache"}),
            )
            assert (old.status_code, old.json()["version"]) == (200, 1)
            assert int(old.headers["Age"]) >= 1
            assert (refused.status_code, refused.json()["code"]) == (503, "log_unavailable")
            assert "Retry-After" in refused.headers
            # Nothing follows an end: an ended task is never out of date.
            assert (fresh.status_code, "Age" in fresh.headers) == (200, False)
            ready = await api.client.get("/health/ready")
            assert (ready.status_code, (await api.client.get("/health/live")).status_code) == (503, 200)
        await until(lambda: api.rooms.tasks.tail.proven)
        again = await api.client.get(f"/tasks/{task_id}", headers={"Cache-Control": "no-cache"})
        assert (again.status_code, "Age" in again.headers) == (200, False)


async def test_a_dead_log_refuses_writes_keeps_streams_and_comes_back(server: EmbeddedServer):
    async with running(server.address) as api:
        task_id = await api.begin()
        wire = await stream(api, task_id)
        assert await wire.frames(1) == await api.frames(task_id)
        await server.kill()
        stranger = {"Authorization": "Bearer tt_other"}
        new, told, unknown, unjudged, polled = await asyncio.gather(
            api.client.post("/tasks", json={"input": "x"}),
            api.client.post(f"/tasks/{task_id}/messages", json={"text": "x"}),
            api.client.get("/tasks/task_01890a5d-ac96-774b-bcce-b302099a8057"),
            api.client.get("/agents", headers=stranger),
            api.client.get(f"/tasks/{task_id}"),
        )
        for answer in (new, told, unknown, unjudged):
            assert answer.status_code == 503, answer.text
            assert answer.json()["code"] in ("outcome_unknown", "log_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert (polled.status_code, "Age" in polled.headers) == (200, True)
        await server.restart()
        await until(lambda: api.rooms.tasks.tail.proven)
        await until(lambda: api.rooms.connection.connected)
        again = await api.client.post(f"/tasks/{task_id}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        assert (await api.client.get("/agents", headers=stranger)).status_code == 401
        _, ended = await wire.rest()
        await wire.close()
        assert ended


async def put_back(server: EmbeddedServer, api: Api, task_id: TaskId, directory: Path) -> tuple[str, str]:
    """An older copy of the log's directory takes its place; the ids of two facts, one still there and one not."""
    store, copy = directory / "nats-data" / "nats", directory / "copy"
    (kept,) = await api.rooms.tasks.log.read(DEV, task_id)
    await server.kill()
    shutil.copytree(store, copy)
    await server.restart()
    await until(lambda: api.rooms.tasks.tail.proven)
    await api.tell(task_id, ReceiveInput(text="of the life that is over"), ReceiveInput(text="this, too"))
    gone = (await api.rooms.tasks.log.read(DEV, task_id))[-1]
    await server.kill()
    shutil.rmtree(store)
    copy.rename(store)
    await server.restart()
    return event_id(kept), event_id(gone)


@pytest.mark.timeout(60)
async def test_a_log_that_went_back_cuts_its_readers_and_resets_their_cursors(server: EmbeddedServer, tmp_path: Path):
    async with running(server.address) as api:
        task_id = await api.begin()
        wire = await stream(api, task_id)
        waiting = asyncio.ensure_future(
            api.client.get(f"/tasks/{task_id}", headers={"Prefer": "wait=20", "If-None-Match": '"1", "2", "3"'})
        )
        kept, gone = await put_back(server, api, task_id, tmp_path)
        async with asyncio.timeout(SOON_S):
            _, ended = await wire.rest()
        assert not ended
        await wire.close()
        await until(lambda: api.rooms.tasks.tail.proven)
        assert await version(api, task_id) == 1
        await api.tell(task_id, ReceiveInput(text="of the new life"))
        frames = await api.frames(task_id)
        assert len(frames) == 2
        resumed = await stream(api, task_id, gone)
        assert await resumed.frames(3) == [RESET, *frames]
        resumed.reset()
        resumed = await stream(api, task_id, kept)
        assert await resumed.frames(1) == frames[1:]
        resumed.reset()
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_a_client_that_gives_up_leaves_no_waiting_behind(nats_address: NatsAddress):
    async with running(nats_address) as api:
        task_id = await api.begin()
        for _ in range(5):
            with pytest.raises(httpx.TimeoutException):
                await api.client.get(f"/tasks/{task_id}", headers={"Prefer": "wait=1"}, timeout=0.05)
        async with api.rooms.tasks.attach(DEV, task_id) as attached:
            await until(lambda: attached.pins == 1)
