"""Watching a task from a terminal: every fact once and in order, over every kind of cut, to the task's end."""

import asyncio
import fcntl
import json
import os
import struct
import termios
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from app.commands import Command
from app.wording import line
from eventstore.connection import NatsAddress
from eventstore.events import TaskId
from eventstore.server import EmbeddedServer
from tests.api import DEV, Api, running
from tests.lifecycle.commands import complete, fail, finish_step, produce, request_input, start_run, start_step
from tests.log.logs import until
from tests.walk.terminal import Said, Terminal, end_of, environment, interrupt, line_to, lines_of, tasktrail

WORKED: list[Command] = [start_run(), start_step(), finish_step(kind="tool", name="search"), produce("a\nb", step=1)]


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


@pytest.fixture
async def terminal() -> AsyncGenerator[Terminal]:
    terminal = Terminal()
    yield terminal
    await terminal.close()


async def history(api: Api, task_id: TaskId) -> list[str]:
    """A line for each fact in the log."""
    return [line(recorded) + "\n" for recorded in await api.rooms.tasks.log.read(DEV, task_id)]


async def test_a_task_that_has_ended_is_told_whole(api: Api) -> None:
    env = environment(api)
    well, badly = await api.begin(*WORKED, complete(result="the\x1b[31m end")), await api.begin(start_run(), fail())
    told, failed, as_json = await asyncio.gather(
        tasktrail("watch", well, env=env),
        tasktrail("watch", badly, env=env),
        tasktrail("watch", well, "--json", env=env),
    )
    assert told == Said(0, "".join(await history(api, well)), "")
    assert told.out.splitlines()[-1].endswith("  completed         the\\x1b[31m end"), "nothing moves the cursor"
    assert failed == Said(1, "".join(await history(api, badly)), "")
    page = (await api.client.get(f"/tasks/{well}/events")).json()
    assert [json.loads(row) for row in as_json.out.splitlines()] == page["data"]


async def test_after_every_kind_of_cut_nothing_is_missing_and_nothing_doubled(api: Api, terminal: Terminal) -> None:
    async with line_to(api.url) as wire:
        task_id = await api.begin()
        watching = await terminal.begin("watch", task_id, env=environment(api, TASKTRAIL_URL=wire.url))
        seen = await lines_of(watching, 1)
        for at, command in enumerate([*WORKED, produce("c", step=1, offset=3)]):
            await api.tell(task_id, command)
            seen += await lines_of(watching, 1)
            if at % 2:
                wire.cut()
            else:
                await until(lambda: len(api.rooms.streams.readers) > 0)
                for reader in list(api.rooms.streams.readers):
                    reader.cut_off("slow")
        wire.lose_answers = 2
        wire.cut()
        await api.tell(task_id, complete())
        said = await end_of(watching)
    assert said.code == 0
    assert seen + said.out.splitlines(keepends=True) == await history(api, task_id)
    assert "trying again" in said.err


async def test_a_question_comes_with_the_command_that_answers_it(api: Api, terminal: Terminal) -> None:
    task_id = await api.begin(start_run())
    watching = await terminal.begin("watch", task_id, env=environment(api))
    await lines_of(watching, 2)
    await api.tell(task_id, request_input())
    assert watching.stderr is not None
    needs = [(await watching.stderr.readline()).decode() for _ in range(2)]
    assert needs == ["it asks: Which one?\n", f"answer with: tasktrail answer {task_id} TEXT\n"]
    assert (await tasktrail("cancel", task_id, env=environment(api))).code == 0
    assert (await end_of(watching)).code == 1


async def test_submitting_can_watch_at_once(api: Api, terminal: Terminal) -> None:
    watching = await terminal.begin("submit", "x", "--watch", env=environment(api))
    assert watching.stderr is not None
    task_id = TaskId((await watching.stderr.readline()).decode().split()[0])
    assert await lines_of(watching, 1) == await history(api, task_id)
    await api.tell(task_id, start_run(), complete())
    assert (await end_of(watching)).code == 0


async def test_a_revoked_token_ends_the_watching_and_not_the_task(api: Api, terminal: Terminal) -> None:
    token = await api.rooms.tokens.add("tt_short", DEV, ("tasks:read",))
    task_id = await api.begin(start_run())
    watching = await terminal.begin("watch", task_id, env=environment(api, TASKTRAIL_TOKEN="tt_short"))
    await lines_of(watching, 2)
    await api.rooms.tokens.revoke(token.id)
    said = await end_of(watching)
    assert said.code == 1
    assert "refused: A valid token is needed" in said.err
    assert (await api.client.get(f"/tasks/{task_id}")).json()["status"] == "running"


async def test_ctrl_c_leaves_the_task_running_and_says_how_to_come_back(api: Api, terminal: Terminal) -> None:
    task_id = await api.begin(start_run())
    watching = await terminal.begin("watch", task_id, env=environment(api))
    await lines_of(watching, 2)
    interrupt(watching)
    said = await end_of(watching)
    assert said.code == 130
    assert said.err.endswith(f"come back to it with: tasktrail watch {task_id}\n")
    assert (await api.client.get(f"/tasks/{task_id}")).json()["status"] == "running"


async def test_a_service_that_stays_away_is_given_up_within_a_bound(api: Api, terminal: Terminal) -> None:
    async with line_to(api.url) as wire:
        task_id = await api.begin(start_run())
        watching = await terminal.begin(
            "watch", task_id, "--retry-for", "1", env=environment(api, TASKTRAIL_URL=wire.url)
        )
        await lines_of(watching, 2)
        wire.lose_answers = 1_000_000
        wire.cut()
        said = await end_of(watching)
    assert said.code == 2
    assert said.err.endswith(f"come back to it with: tasktrail watch {task_id}\n")


async def test_a_log_that_is_another_than_it_was_is_told_from_its_beginning(
    api: Api, terminal: Terminal, tmp_path: Path
) -> None:
    server = await EmbeddedServer.start(tmp_path / "another")
    try:
        async with running(server.address) as another, line_to(api.url) as wire:
            env = environment(api)
            submitted = [
                await tasktrail("submit", "x", "--key", "k", env=env | {"TASKTRAIL_URL": one.url})
                for one in (api, another)
            ]
            task_id = TaskId(submitted[0].out.strip())
            assert submitted[0] == submitted[1], "the same key is the same task, in two logs"
            watching = await terminal.begin("watch", task_id, env=env | {"TASKTRAIL_URL": wire.url})
            assert await lines_of(watching, 1) == await history(api, task_id)
            await another.tell(task_id, start_run(), complete())
            wire.leads_to = another.url
            wire.cut()
            said = await end_of(watching)
            assert said.code == 0
            assert said.out.splitlines(keepends=True) == await history(another, task_id)
            assert "the log is another than it was" in said.err
    finally:
        await server.stop()


async def test_in_a_terminal_the_view_is_live(api: Api, terminal: Terminal) -> None:
    task_id = await api.begin(*WORKED)
    outside, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(outside, lambda: shown.extend(os.read(outside, 65_536)))
    try:
        watching = await terminal.begin("watch", task_id, env=environment(api, TERM="xterm-256color"), stdout=inside)
        await until(lambda: b"running" in shown and b"search" in shown)
        await api.tell(task_id, produce(" [bold]and[/bold] \x1b[2J more", step=1, offset=3))
        await api.tell(task_id, finish_step(1), request_input(2))
        await until(lambda: b"tasktrail answer" in shown)
        await tasktrail("answer", task_id, "The blue one", env=environment(api))
        await api.tell(task_id, start_run(2), complete(2, result="a brief"))
        said = await end_of(watching)
        await until(lambda: b"a brief" in shown)
    finally:
        loop.remove_reader(outside)
        os.close(inside)
        os.close(outside)
    assert (said.code, said.err) == (0, "")
    text = shown.decode()
    assert "Traceback" not in text
    assert "[bold]and[/bold] \\x1b[2J more" in text, "what the agent says is shown as it is, and moves nothing"
    assert "Which one?" in text
    assert "completed" in text
