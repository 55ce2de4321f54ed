"""`tasktrail serve`: one command starts everything, says how to use it, mends what dies, and leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from app import __version__
from app.agents.builtin import LazyResearcher
from app.agents.researcher import Researcher
from app.local import read_local
from eventstore.connection import Connection, NatsAddress
from eventstore.events import Owner
from eventstore.tokens import Tokens
from tests.walk.issuer import AUDIENCE, issuing
from tests.walk.serving import WITHIN_S, attempt, family, free_port, is_one_line, listed, runs, serving, until_gone

PARTS = {"api", "projector", "worker", "nats-server"}
SLOW = msgspec.json.encode({"steps": [{"sleep": 0.3}, {"complete": "slept"}]}).decode()
JSON = {"Content-Type": "application/json"}
ASKING = msgspec.json.encode({"steps": [{"ask": "Who?"}, {"complete": "{answer}"}]}).decode()


class Body(msgspec.Struct):
    """What we look at of a task."""

    task_id: str
    status: str
    result: str | None = None
    run: int = 0


@asynccontextmanager
async def in_bucket(data_dir: Path) -> AsyncGenerator[Tokens]:
    """The tokens of the service there."""
    local = read_local(data_dir)
    assert local is not None
    assert local.nats is not None
    connection = await Connection.open(local.nats, "tests")
    tokens = await Tokens.open(connection)
    yield tokens
    await tokens.close()
    await connection.close()


async def submitted(client: httpx.AsyncClient, steps: str) -> Body:
    answer = await client.post("/tasks", json={"input": steps})
    assert answer.status_code == 201, answer.text
    return msgspec.json.decode(answer.content, type=Body)


async def task_when(client: httpx.AsyncClient, task_id: str, *statuses: str) -> Body:
    """The task once it has one of these statuses."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            answer = await client.get(f"/tasks/{task_id}", headers={"Prefer": "wait=1"})
            assert answer.status_code == 200, answer.text
            task = msgspec.json.decode(answer.content, type=Body)
            if task.status in statuses:
                return task


async def pasted(curl: str) -> str:
    """What a shell prints for this line."""
    done = await asyncio.to_thread(subprocess.run, ["bash", "-c", curl], capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


async def test_a_first_start_prints_a_curl_that_begins_a_task_and_the_task_runs_to_its_end(tmp_path: Path):
    async with serving(tmp_path / "data") as service:
        assert service.token.startswith("tt_")
        assert str(tmp_path / "data") in service.printed
        answer = await pasted(service.curl)
        assert answer.startswith("HTTP/1.1 201 "), answer
        async with service.client() as client:
            task = await submitted(client, SLOW)
            assert (await task_when(client, task.task_id, "completed")).result == "slept"
            for _ in range(2):  # our own token is unlimited, and told of the limits all the same
                polled = await client.get(f"/v1/public/tasks/{task.task_id}")
                assert polled.headers["X-RateLimit-Remaining"] == polled.headers["X-RateLimit-Limit"] == "600"


async def test_a_clean_stop_leaves_no_process_and_only_the_token_for_local_clients(tmp_path: Path):
    async with serving(tmp_path) as service:
        local = read_local(tmp_path)
        assert local is not None
        assert (local.url, local.token) == (service.url, service.token)
        assert stat.S_IMODE((tmp_path / "tasktrail.json").stat().st_mode) == 0o600
        parts = family(service.process.pid)
        assert set(parts) == PARTS
        assert await service.stop(signal.SIGTERM) == 0
        assert not any(map(runs, parts.values()))
        stopped = read_local(tmp_path)
        assert stopped is not None
        assert (stopped.url, stopped.nats, stopped.token) == (None, None, service.token)
        assert '"error"' not in service.logs
        assert "Traceback" not in service.logs


async def test_ctrl_c_reaches_the_supervisor_alone_and_a_second_one_kills(tmp_path: Path):
    async with serving(tmp_path) as service, service.client() as client:
        parts = family(service.process.pid)
        assert all(os.getpgid(pid) == pid for pid in parts.values())
        task = await submitted(client, ASKING)
        await task_when(client, task.task_id, "waiting_for_input")
        # A request that is never whole: the API waits for the rest for five seconds when it is told to stop.
        begun = asyncio.Event()

        async def never_whole() -> AsyncGenerator[bytes]:
            yield b'{"input":'
            begun.set()
            await asyncio.Event().wait()

        waiting = asyncio.create_task(client.post("/tasks", content=never_whole(), headers=JSON))
        await begun.wait()
        assert (await client.get(f"/tasks/{task.task_id}")).status_code == 200  # what came before it was read, too
        service.process.send_signal(signal.SIGINT)
        await service.logged("serve.stopping")
        assert await service.stop(signal.SIGINT) == 0
        assert "child.killed" in service.logs
        assert not any(map(runs, parts.values()))
        waiting.cancel()  # its client would go on with its body for ever
        await asyncio.wait({waiting})


async def test_who_waits_for_a_task_is_answered_when_it_is_told_to_stop(tmp_path: Path):
    async with serving(tmp_path) as service, service.client() as client:
        task = await submitted(client, ASKING)
        await task_when(client, task.task_id, "waiting_for_input")
        known = {"If-None-Match": f'"{(await client.get(f"/tasks/{task.task_id}")).headers["ETag"].strip(chr(34))}"'}
        waiting = asyncio.create_task(client.get(f"/tasks/{task.task_id}", headers={"Prefer": "wait=60"} | known))
        await client.get("/health/live")
        assert await service.stop() == 0
        assert (await waiting).status_code == 304
        assert "child.killed" not in service.logs


async def test_a_start_right_after_the_supervisor_was_killed_has_all_that_was_there(tmp_path: Path):
    async with serving(tmp_path) as service, service.client() as client:
        parts = family(service.process.pid)
        task = await submitted(client, ASKING)
        service.process.kill()
        await service.process.wait()
        async with serving(tmp_path, port=service.port) as again, again.client() as same_client:
            assert (again.url, again.token) == (service.url, service.token)
            assert (await task_when(same_client, task.task_id, "waiting_for_input")).task_id == task.task_id
            await until_gone(*parts.values())
            assert set(family(again.process.pid)) == PARTS


async def test_an_api_that_is_killed_is_back_on_its_port_with_the_same_tasks(tmp_path: Path):
    async with serving(tmp_path) as service:
        async with service.client() as client:
            task = await submitted(client, ASKING)
            await task_when(client, task.task_id, "waiting_for_input")
        killed = family(service.process.pid)["api"]
        os.kill(killed, signal.SIGKILL)
        await until_gone(killed)
        # Nobody is refused meanwhile: the port stays open, and the request waits for the next API.
        async with service.client() as client:
            assert (await client.get(f"/tasks/{task.task_id}")).status_code == 200
        assert family(service.process.pid)["api"] != killed


async def test_the_tasks_of_a_worker_that_is_killed_go_on_before_its_lease_ends(tmp_path: Path):
    # A lease so long that only the announcement of the death can be why the task goes on.
    async with serving(tmp_path, "--lease-s", "600") as service, service.client() as client:
        scenario = {"steps": [{"tool": "think", "takes": 0.1}, {"crash": True}, {"complete": "alive"}]}
        task = await submitted(client, msgspec.json.encode(scenario).decode())
        ended = await task_when(client, task.task_id, "completed", "failed")
        assert (ended.status, ended.result, ended.run) == ("completed", "alive", 2)


async def test_a_token_that_was_given_replaces_the_one_that_was_made_and_is_kept(tmp_path: Path):
    async with serving(tmp_path) as service:
        made = service.token
        async with in_bucket(tmp_path) as tokens:
            await tokens.add(made, Owner("dev"), ("tasks:read",))  # as an older release knew it
        assert await service.stop() == 0
    async with serving(tmp_path) as service, service.client() as client:
        assert service.token == made
        assert (await client.get("/admin/tokens")).status_code == 200
        assert await service.stop() == 0
    async with serving(tmp_path, "--token", "it's-mine") as service:
        assert service.token == "it's-mine"
        assert (await pasted(service.curl)).startswith("HTTP/1.1 201 ")
        assert await service.stop() == 0
    async with serving(tmp_path) as service:
        assert service.token == "it's-mine"


async def test_the_token_of_the_vendors_pages_and_those_of_an_issuer_open_every_door(tmp_path: Path):
    async with issuing() as issuer:
        words = ("--oauth-issuer", issuer.url, "--oauth-audience", AUDIENCE)
        async with serving(tmp_path, "--token", "sk_test_123456", *words, port=free_port()) as service:
            assert service.token == "sk_test_123456"
            granted = issuer.token(scope="tasks:read")
            async with httpx.AsyncClient(base_url=service.url, timeout=WITHIN_S) as client:
                for headers in (
                    {"X-API-Key": "sk_test_123456"},
                    {"Authorization": "Bearer sk_test_123456"},
                    {"Authorization": f"Bearer {granted}"},
                ):
                    assert (await client.get("/agents", headers=headers)).status_code == 200
                    assert (await client.get("/v1/public/tasks/x", headers=headers)).status_code == 404
                    status = 403 if granted in headers.get("Authorization", "") else 200
                    assert (await client.get("/admin/tokens", headers=headers)).status_code == status
            assert granted not in service.logs


async def test_a_token_that_was_revoked_does_not_come_back_with_the_next_start(tmp_path: Path):
    async with serving(tmp_path) as service:
        revoked = service.token
        async with in_bucket(tmp_path) as tokens:
            assert await tokens.revoke((await tokens.all())[0].id)
        assert await service.stop() == 0
    async with serving(tmp_path) as service, service.client() as client:
        assert service.token != revoked
        refused = await client.get("/agents", headers={"Authorization": f"Bearer {revoked}"})
        assert refused.status_code == 401
        assert (await client.get("/agents")).status_code == 200


async def test_the_environment_sets_options_and_no_secret_is_shown_by_ps_or_the_logs(tmp_path: Path):
    secret = "tt_from-the-environment"
    documents = tmp_path / "documents"
    documents.mkdir()
    settings = {
        "TOKEN": secret,
        "HOST": "0.0.0.0",
        "DEFAULT_AGENT": "researcher",
        "DOCUMENTS": str(documents),
        "WORKER_PROCESSES": "2",
        "LOG_LEVEL": "debug",
    }
    environment = {f"TASKTRAIL_{name}": value for name, value in settings.items()}
    async with serving(tmp_path / "data", environment=environment) as service:
        assert service.token == secret
        assert "http.unencrypted_beyond_loopback" in service.logs
        async with service.client() as client:
            offered = (await client.get("/agents")).text
            assert '"researcher"' in offered
            task = await submitted(client, "no such document")
            await task_when(client, task.task_id, "completed", "failed")
            answer = await client.get(f"/tasks/{task.task_id}")
            assert '"agent":"researcher"' in answer.text.replace(" ", "")
            await client.get(f"/tasks/{task.task_id}/events?token={secret}", headers={"Accept": "text/event-stream"})
        shown = listed("pid,args")
        local = read_local(tmp_path / "data")
        assert local is not None
        assert local.nats is not None
        password = local.nats.url.partition("@")[0].rpartition(":")[2]
        assert await service.stop() == 0
        assert "worker-2" in service.logs
        for hidden in (secret, password):
            assert hidden not in shown
            assert hidden not in service.logs


async def test_a_directory_in_use_and_a_port_in_use_are_one_line_each(tmp_path: Path):
    async with serving(tmp_path / "one") as service:
        same_directory, same_port = await asyncio.gather(
            attempt("serve", "--data-dir", str(tmp_path / "one"), "--port", "0"),
            attempt("serve", "--data-dir", str(tmp_path / "two"), "--port", str(service.port)),
        )
        code, out, err = same_directory
        assert (code, out, is_one_line(err)) == (2, "", True), err
        assert f"in use by another instance (pid {service.process.pid})" in err
        code, out, err = same_port
        assert (code, out, is_one_line(err)) == (2, "", True), err
        assert f"port {service.port} of 127.0.0.1 is in use" in err
        async with service.client() as client:
            assert (await client.get("/health/ready")).status_code == 200


async def test_a_port_that_becomes_free_in_time_is_taken(tmp_path: Path):
    port = free_port()
    taken = socket.create_server(("127.0.0.1", port))
    asyncio.get_running_loop().call_later(1.5, taken.close)
    async with serving(tmp_path, port=port) as service:
        assert service.port == port


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--default-agent", "nobody"], "no agent 'nobody'; there are: simulator"),
        (["--documents", "nowhere"], "Directory 'nowhere' does not exist"),
        (["--port", "many"], "'many' is not a valid integer"),
        (["--token", "two words"], "a token is"),
        (["--nats-url", "http://user:secret@there"], "'there' is no address of a NATS server"),
        (["--sync-interval", "soon"], "'soon' is neither `always` nor a time"),
        (["--sync-interval", "0s"], "'0s' is neither `always` nor a time"),
        (["--oauth-issuer", "https://login.example.org"], "--oauth-audience is missing"),
        (["--oauth-issuer", "login.example.org", "--oauth-audience", "us"], "'login.example.org' is no address"),
        (["--oauth-jwks-url", "http://"], "'http://' is no address"),
        (["--ssl-certfile", __file__], "can't be used as our certificate"),
        (["--data-dir", f"{__file__}/below"], "can't be written: Not a directory"),
        (["--host", "192.0.2.1"], "can't listen on 192.0.2.1"),
        (["--frobnicate"], "No such option '--frobnicate'"),
    ],
)
async def test_what_cannot_be_tried_is_one_line_and_exit_code_2(tmp_path: Path, options: list[str], says: str):
    code, out, err = await attempt("serve", "--log-level", "error", *options, TASKTRAIL_DATA_DIR=str(tmp_path))
    assert (code, out, is_one_line(err)) == (2, "", True), err
    assert says in err
    assert "secret" not in err


async def test_a_nats_that_is_not_there_is_one_line_for_every_command(tmp_path: Path):
    url = f"nats://ann:secret@127.0.0.1:{free_port()}"
    ends = await asyncio.gather(
        attempt("serve", "--nats-url", url, "--data-dir", str(tmp_path), "--port", "0"),
        attempt("api", "--port", "0", TASKTRAIL_NATS_URL=url),
        attempt("worker", TASKTRAIL_NATS_URL=url),
        attempt("projector", TASKTRAIL_NATS_URL=url),
    )
    for code, out, err in ends:
        assert (code, out, is_one_line(err)) == (2, "", True), err
        assert "no NATS at 127.0.0.1:" in err
        assert "secret" not in err


async def test_the_version_is_told():
    assert await attempt("--version") == (0, f"tasktrail, version {__version__}\n", "")


async def test_a_shared_nats_is_used_and_left_alone(tmp_path: Path, nats_address: NatsAddress):
    async with serving(tmp_path, "--nats-url", nats_address.url) as service:
        assert set(family(service.process.pid)) == PARTS - {"nats-server"}
        async with service.client() as client:
            task = await submitted(client, SLOW)
            await task_when(client, task.task_id, "completed")
        assert await service.stop() == 0
    connection = await Connection.open(nats_address, "tests")
    tokens = await Tokens.open(connection)
    assert await tokens.find(service.token) is not None
    await tokens.close()
    await connection.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_over_tls_the_printed_curl_works_too(tmp_path: Path):
    certificate = _certificate(tmp_path)
    async with serving(
        tmp_path / "data", "--ssl-certfile", str(certificate), "--ssl-keyfile", str(tmp_path / "key.pem")
    ) as service:
        assert service.url.startswith("https://")
        assert " 201" in (await pasted(service.curl)).splitlines()[0]
        local = read_local(tmp_path / "data")
        assert local is not None
        assert local.certificate == certificate


def _certificate(directory: Path) -> Path:
    """A certificate for 127.0.0.1 that signed itself; its key is `key.pem` beside it."""
    asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=tasktrail"
    paths = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(["openssl", *asked.split(), *paths], cwd=directory, capture_output=True, check=True)
    return directory / "certificate.pem"


def test_the_researcher_is_offered_under_its_own_name(tmp_path: Path):
    offered = LazyResearcher(tmp_path, limit=3)
    agent = Researcher(tmp_path, limit=3)
    assert (offered.name, offered.description, offered.limit) == (agent.name, agent.description, agent.limit)
    assert isinstance(offered.loaded, Researcher)
