"""`serve --api-processes 2`: two at one address, which tell one story, and of which one may die."""

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.cli import run
from app.listening import CannotListen, listen, listen_together
from app.readiness import NeverReady, Readiness, say_ready, wait_to_go
from app.serving import Protocol
from eventstore.events import Owner
from eventstore.tokens import Plan
from tests.api import NO_TLS
from tests.walk.deployment import insist
from tests.walk.serving import WITHIN_S, Serving, attempt, is_one_line, members, serving, until_gone
from tests.walk.test_kill import Seen, follow, history, read_frames, without_place
from tests.walk.test_serve import in_bucket

TWO = ("--api-processes", "2")
NOWHERE = "/tasks/task_01890a5d-ac96-774b-bcce-b302099a8057"
SSE = {"Accept": "text/event-stream"}
STREAMS = 16
QUESTIONS = 12
ASKING = {"steps": [*({"ask": f"Question {n}?"} for n in range(QUESTIONS)), {"complete": "all answered"}]}


@asynccontextmanager
async def stranger(service: Serving, token: str = "") -> AsyncGenerator[httpx.AsyncClient]:
    """A client whose every request is a connection of its own: it meets now this process, now that one."""
    async with httpx.AsyncClient(
        base_url=service.url,
        headers={"Authorization": f"Bearer {token or service.token}", "Connection": "close"},
        timeout=WITHIN_S,
        verify=NO_TLS,
    ) as client:
        yield client


def apis(service: Serving) -> set[int]:
    """The pids of its API processes."""
    return {pid for name, pid in members(service.process.pid) if name == "api"}


async def counted(client: httpx.AsyncClient, pids: set[int], name: str, **labels: str) -> dict[int, float]:
    """One figure of `/metrics` for each of these API processes, once they all tell theirs."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            text = (await client.get("/metrics")).text
            samples = [
                sample
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.labels["process"] == "api"
            ]
            if pids <= {pid_of(sample.labels["instance"]) for sample in samples}:
                return {
                    pid_of(sample.labels["instance"]): sample.value
                    for sample in samples
                    if sample.name == f"tasktrail_{name}" and labels.items() <= sample.labels.items()
                }


def pid_of(instance: str) -> int:
    """Of host, pid and chance."""
    return int(instance.rsplit("-", 2)[1])


async def waiting(client: httpx.AsyncClient, task_id: str) -> dict[str, object]:
    """The task when it asks something, or has ended."""
    async with asyncio.timeout(WITHIN_S):
        version = ""
        while True:
            headers = {"Prefer": "wait=5", "If-None-Match": version} if version else {}
            answer = await client.get(f"/tasks/{task_id}", headers=headers)
            if answer.status_code == 200 and answer.json()["status"] in ("waiting_for_input", "completed"):
                return answer.json()
            version = answer.headers["ETag"]


async def begun(client: httpx.AsyncClient) -> str:
    """A task that waits for its first answer."""
    answer = await client.post("/tasks", json={"input": ASKING})
    assert answer.status_code == 201, answer.text
    await waiting(client, answer.json()["task_id"])
    return answer.json()["task_id"]


async def answered(client: httpx.AsyncClient, task_id: str) -> None:
    """Answer all that it asks; what was acknowledged here, whoever is asked next knows."""
    while (await waiting(client, task_id))["status"] != "completed":
        said = await client.post(f"/tasks/{task_id}/messages", json={"text": "so it is"})
        assert said.status_code == 200, said.text
        assert (await client.get(f"/tasks/{task_id}")).json()["version"] >= said.json()["version"]


async def never_back(client: httpx.AsyncClient, task_id: str) -> int:
    """Poll to the end, over whatever is cut, and be told no older version than before; the last one."""
    version, status = 0, ""
    while status != "completed":
        task = (await insist(client, "GET", f"/tasks/{task_id}")).json()
        assert task["version"] >= version
        version, status = int(task["version"]), task["status"]
    return version


async def follow_once(client: httpx.AsyncClient, task_id: str) -> Seen:
    """One stream, which must not be cut."""
    seen = Seen()
    async with client.stream("GET", f"/tasks/{task_id}/events", headers=SSE) as answer:
        await read_frames(answer, seen)
    assert seen.ended
    return seen


async def streaming_at(client: httpx.AsyncClient, pids: set[int], streams: int) -> dict[int, float]:
    """Return once so many streams are open at these processes together, some at each: how many."""
    async with asyncio.timeout(WITHIN_S):
        while sum((at := await counted(client, pids, "open_streams")).values()) < streams:  # noqa: ASYNC110  # figures announce nothing
            await asyncio.sleep(0.02)
    assert set(at) == pids
    assert all(at.values())
    return at


def environment_of(pid: int) -> dict[str, str]:
    """What a process was told when it began."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def told(seen: Seen, events: list[dict[str, object]]) -> bool:
    """Whether somebody saw all of it once, in order, byte for byte."""
    frames = [json.loads(frame) for frame in seen.frames]
    return seen.ids == [event["id"] for event in events] and frames == [without_place(event) for event in events]


async def test_both_processes_answer_at_one_address_and_are_counted_together(tmp_path: Path):
    async with serving(tmp_path, *TWO) as service, stranger(service) as client:
        pids = apis(service)
        assert len(pids) == 2
        before = await counted(client, pids, "http_requests_total", status="404")
        for _ in range(50):
            assert (await client.get(NOWHERE)).status_code == 404
        after = await counted(client, pids, "http_requests_total", status="404")
        assert all(after[pid] > before.get(pid, 0) for pid in pids)
        assert sum(after.values()) - sum(before.values()) == 50
        async with in_bucket(tmp_path) as tokens:
            await tokens.add("tt_few", Owner("ann"), ("tasks:read",), plan=Plan(limits={"native": 20}))
        async with stranger(service, "tt_few") as limited:
            statuses = [(await limited.get(NOWHERE)).status_code for _ in range(50)]
        assert statuses == [404] * 20 + [429] * 30
        assert '"process": "api-1"' in service.logs
        assert '"process": "api-2"' in service.logs


async def test_streams_and_commands_of_one_task_land_anywhere_and_tell_one_story(tmp_path: Path):
    async with serving(tmp_path, *TWO) as service, stranger(service) as client:
        task_id = await begun(client)
        streams = [asyncio.ensure_future(follow_once(client, task_id)) for _ in range(STREAMS)]
        await streaming_at(client, apis(service), STREAMS)
        await answered(client, task_id)
        seen = await asyncio.gather(*streams)
        events = await history(client, task_id)
        assert len(events) > 3 * QUESTIONS
        assert all(told(one, events) for one in seen)


async def test_one_that_is_killed_comes_back_alone_and_nobody_loses_anything(tmp_path: Path):
    async with serving(tmp_path, *TWO) as service, stranger(service) as client, service.client() as steady:
        task_id = await begun(client)
        before = apis(service)
        streams = [asyncio.ensure_future(follow(client, task_id)) for _ in range(STREAMS)]
        polls = [asyncio.ensure_future(never_back(client, task_id)) for _ in range(4)]
        at = await streaming_at(client, before, STREAMS)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        await until_gone(victim)
        # Nobody is refused meanwhile: who comes now is answered by the other one, or by the next life.
        answers = await asyncio.gather(*[client.get(f"/tasks/{task_id}") for _ in range(20)])
        assert {answer.status_code for answer in answers} == {200}
        await answered(client, task_id)
        seen, versions = await asyncio.gather(*streams), await asyncio.gather(*polls)
        events = await history(steady, task_id)
        assert all(told(one, events) for one in seen)
        assert set(versions) == {len(events)}
        assert sum(one.cuts > 0 for one in seen) == at[victim], "the other's streams were not cut"
        after = apis(service)
        assert len(after) == 2
        assert before - after == {victim}
        assert sum((await counted(client, after, "attached_tasks")).values()) >= 1


async def test_a_stop_drains_them_all(tmp_path: Path):
    async with serving(tmp_path, *TWO) as service, stranger(service) as client:
        task_id, pids = await begun(client), apis(service)
        known = {"If-None-Match": (await client.get(f"/tasks/{task_id}")).headers["ETag"], "Prefer": "wait=60"}
        streams = [asyncio.ensure_future(client.get(f"/tasks/{task_id}/events", headers=SSE)) for _ in range(STREAMS)]
        await streaming_at(client, pids, STREAMS)
        waiting_for_it = [asyncio.ensure_future(client.get(f"/tasks/{task_id}", headers=known)) for _ in range(STREAMS)]
        await client.get("/health/live")
        assert await service.stop() == 0
        assert {(await answer).status_code for answer in waiting_for_it} == {304}
        assert all(
            isinstance(one, httpx.RemoteProtocolError) for one in await asyncio.gather(*streams, return_exceptions=True)
        )
        assert "child.killed" not in service.logs
        await until_gone(*pids)


@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process was told in /proc")
async def test_several_are_strict_where_one_is_not_and_what_is_told_wins(tmp_path: Path):
    found: list[str | None] = []
    for number, options in enumerate([(), TWO, (*TWO, "--reads", "bounded")]):
        async with serving(tmp_path / str(number), *options) as service:
            told_to = {environment_of(pid).get("TASKTRAIL_READS") for pid in apis(service)}
            found += told_to
    assert found == ["bounded", None, "bounded"]


async def test_a_port_that_several_share_is_not_shared_with_another_deployment(tmp_path: Path):
    async with serving(tmp_path / "one", *TWO) as service:
        others = [
            attempt("serve", "--data-dir", str(tmp_path / f"{number}"), "--port", str(service.port), *options)
            for number, options in enumerate([(), TWO])
        ]
        for code, out, err in await asyncio.gather(*others):
            assert (code, out, is_one_line(err)) == (2, "", True), err
            assert f"port {service.port} of 127.0.0.1 is in use" in err


async def test_the_sockets_of_one_address_take_connections_from_the_first_moment():
    sockets = await listen_together("127.0.0.1", 0, 3)
    ports = {one.getsockname()[1] for one in sockets}
    assert len(ports) == 1
    with pytest.raises(CannotListen):
        await listen("127.0.0.1", *ports, wait_s=0.1)
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", *ports)
        writer.close()
    for one in sockets:
        one.close()
    (await listen("127.0.0.1", *ports)).close()


async def test_they_are_ready_when_all_have_said_so():
    with Readiness.open() as readiness:
        go, ready = readiness.inherited
        say_ready(ready, "api-2")
        with pytest.raises(NeverReady, match=r"not ready within 0\.05 s: api-1$"):
            await readiness.of_all({"api-1", "api-2"}, 0.05)
        all_ready = asyncio.ensure_future(readiness.of_all({"api-1", "api-2"}, WITHIN_S))
        say_ready(ready, "api-1")
        await all_ready
        going = asyncio.ensure_future(asyncio.to_thread(wait_to_go, go))
        assert not select.select([go], [], [], 0)[0]
        readiness.go()
        await going
        wait_to_go(go)  # as one that comes later


def test_the_loop_is_uvloops_and_http_is_read_by_httptools():
    async def found() -> None:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)

    run(found())
    assert issubclass(Protocol, HttpToolsProtocol)
