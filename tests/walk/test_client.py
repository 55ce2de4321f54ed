"""The client's commands against a real API: what they print, where, and with which exit code."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from app.client import Client, Where, where
from app.local import Local, write_local
from app.replies import task_of
from eventstore.connection import NatsAddress
from eventstore.events import Owner, TaskId
from tests.api import Api, running
from tests.lifecycle.commands import complete, fail, finish_step, produce, request_input, request_review, start_run
from tests.walk.terminal import Said, Terminal, end_of, environment, line_to, tasktrail

NO_TASK = "task_01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    async with running(nats_address) as api:
        yield api


@pytest.fixture
async def terminal() -> AsyncGenerator[Terminal]:
    terminal = Terminal()
    yield terminal
    await terminal.close()


async def body_of(api: Api, task_id: str) -> dict[str, object]:
    answer = await api.client.get(f"/tasks/{task_id}")
    body: dict[str, object] = answer.json()
    return body


async def test_submitting_prints_the_id_alone_and_sends_what_was_asked_for(api: Api, tmp_path: Path) -> None:
    env = environment(api)
    (tmp_path / "wish.txt").write_text("from a file\nof two lines")
    (tmp_path / "scenario.json").write_text('{"steps": [{"say": "hé"}]}')
    wishes = [
        "--title",
        "T",
        "--session",
        "s1",
        "--timeout",
        "60",
        "--approval-mode",
        "confirm",
        "--agent",
        "simulator",
    ]
    said = await asyncio.gather(
        tasktrail("submit", "a text", *wishes, "--metadata", '{"a": [1]}', env=env),
        tasktrail("submit", "-", env=env, stdin="from standard input"),
        tasktrail("submit", f"@{tmp_path / 'wish.txt'}", env=env),
        tasktrail("submit", f"@{tmp_path / 'scenario.json'}", "--json-input", env=env),
        tasktrail("submit", '{"a": 1}', "--json", env=env),
    )
    assert [one.code for one in said] == [0] * 5, said
    assert all(one.err == "" for one in said)
    first, *others = [await body_of(api, one.out.strip()) for one in said[:4]]
    assert [first[name] for name in ("input", "title", "session_id", "approval_mode", "metadata")] == [
        "a text",
        "T",
        "s1",
        "confirm",
        {"a": [1]},
    ]
    assert first["deadline"] is not None
    assert [one["input"] for one in others] == [
        "from standard input",
        "from a file\nof two lines",
        {"steps": [{"say": "hé"}]},
    ]
    assert task_of(said[4].out.encode()).input == '{"a": 1}', "a text that looks like JSON is still a text"


async def test_submitting_over_a_bad_line_creates_one_task(api: Api) -> None:
    async with line_to(api.url) as line:
        line.lose_answers = 2
        said = await tasktrail("submit", "x", "--json", env=environment(api, TASKTRAIL_URL=line.url))
        assert said.code == 0, said
        assert line.connections == 3
    task_id = TaskId(json.loads(said.out)["task_id"])
    assert api.rooms.tasks.attached_count == 1
    assert len(await api.rooms.tasks.log.read(Owner("dev"), task_id)) == 1


async def test_the_same_key_is_the_same_task(api: Api) -> None:
    env = environment(api)
    first, again = [await tasktrail("submit", "x", "--key", "k 1", env=env) for _ in range(2)]
    assert first == again
    other = await tasktrail("submit", "y", "--key", "k 1", env=env)
    assert other.code == 1
    assert "another request" in other.err


async def test_waiting_prints_the_result_and_says_what_the_task_needs(api: Api, terminal: Terminal) -> None:
    waiting = await terminal.begin("submit", "x", "--wait", env=environment(api))
    assert waiting.stderr is not None
    created = (await waiting.stderr.readline()).decode()
    task_id = TaskId(created.split()[0])
    await api.tell(task_id, start_run(), request_input())
    needs = [(await waiting.stderr.readline()).decode() for _ in range(2)]
    assert needs == ["it asks: Which one?\n", f"answer with: tasktrail answer {task_id} TEXT\n"]
    answered = await tasktrail("answer", task_id, "The blue one", env=environment(api))
    assert answered.out == f"{task_id} is pending\n"
    await api.tell(task_id, start_run(2), produce("some", step=1, run=2), complete(2, result="two\nlines"))
    assert await end_of(waiting) == Said(0, "two\nlines\n", "")


async def test_waiting_for_a_task_that_fails_or_is_cancelled_gives_exit_code_1(api: Api, terminal: Terminal) -> None:
    env = environment(api)
    failing, cancelled = (
        await terminal.begin("submit", "x", "--wait", env=env),
        await terminal.begin("submit", "y", "--wait", env=env),
    )
    assert failing.stderr is not None
    assert cancelled.stderr is not None
    first, second = [TaskId((await one.readline()).decode().split()[0]) for one in (failing.stderr, cancelled.stderr)]
    await api.tell(first, start_run(), fail())
    said = await tasktrail("cancel", second, "--reason", "no\x1b[31m need", env=env)
    assert said == Said(0, f"{second} is cancelled\n", "")
    assert await end_of(failing) == Said(1, "", "the task ended as failed: broken: it broke\n")
    assert await end_of(cancelled) == Said(1, "", "the task ended as cancelled: cancelled: no\\x1b[31m need\n")


async def test_a_course_is_changed_by_pause_resume_approve_and_refuse(api: Api) -> None:
    env = environment(api)
    task_id = await api.begin(start_run())
    assert (await tasktrail("pause", task_id, env=env)).out == f"{task_id} is running, to be paused\n"
    assert (await tasktrail("resume", task_id, env=env)).out == f"{task_id} is running\n"
    assert (await tasktrail("refuse", task_id, env=env)).err == (
        "refused: Not waiting: nothing to refuse: the task is running\n"
    )
    await api.tell(task_id, request_review())
    paused = await tasktrail("pause", task_id, "--json", env=env)
    assert json.loads(paused.out)["status"] == "paused"
    assert (await tasktrail("resume", task_id, env=env)).err.startswith("it awaits your review: Send the mail?\n")
    refused = await tasktrail("refuse", task_id, "--feedback", "not yet", env=env)
    assert refused == Said(0, f"{task_id} is pending\n", "")
    await api.tell(task_id, start_run(2), request_review(1, run=2))
    approved = await tasktrail("approve", task_id, env=env)
    assert approved.out == f"{task_id} is pending\n"
    history = await tasktrail("show", task_id, "--events", env=env)
    assert [row.split("review_decided")[1].strip() for row in history.out.splitlines() if "review_decided" in row] == [
        "refused: not yet",
        "approved",
    ]


async def test_a_task_is_shown_as_it_is_for_people_and_for_programs(api: Api) -> None:
    env = environment(api)
    task_id = await api.begin(start_run(), finish_step(kind="tool", name="search"), produce("a\nb", step=1))
    await api.tell(task_id, request_input(1))
    card, as_json, events, records = await asyncio.gather(
        tasktrail("show", task_id, env=env),
        tasktrail("show", task_id, "--json", env=env),
        tasktrail("show", task_id.removeprefix("task_").upper(), "--events", env=env),
        tasktrail("show", task_id, "--events", "--json", env=env),
    )
    assert f"task      {task_id}\nstatus    waiting_for_input\nagent     simulator\n" in card.out
    assert "tools     search\n" in card.out
    assert "question  Which one?\n" in card.out
    assert card.err.endswith(f"answer with: tasktrail answer {task_id} TEXT\n")
    assert json.loads(as_json.out) == await body_of(api, task_id)
    names = ["created", "started", "tool_used", "partial", "input_requested"]
    shown = [row.split() for row in events.out.splitlines()]
    assert [row[2] for row in shown] == names
    page = (await api.client.get(f"/tasks/{task_id}/events")).json()
    assert [json.loads(row) for row in records.out.splitlines()] == page["data"]
    assert [row[0] for row in shown] == [f"#{one['sequence']}" for one in page["data"]]


async def test_a_task_is_shown_as_it_was(api: Api) -> None:
    env = environment(api)
    task_id = await api.begin(start_run(), request_input())
    card, as_json, both, beyond, before, no_sequence = await asyncio.gather(
        tasktrail("show", task_id, "--at", "2", env=env),
        tasktrail("show", task_id, "--at", "3", "--json", env=env),
        tasktrail("show", task_id, "--at", "3", "--events", env=env),
        tasktrail("show", task_id, "--at", "4", env=env),
        tasktrail("show", task_id, "--at", "#0", env=env),
        tasktrail("show", task_id, "--at", "x", env=env),
    )
    assert f"task      {task_id}\nstatus    running\n" in card.out
    assert " s (up to its last fact then)\n" in card.out
    assert no_sequence.code == 2
    assert "'x' is no sequence of the log" in no_sequence.err
    assert card.err.startswith("as it was at sequence 2: version 2, its last fact then at ")
    assert json.loads(as_json.out) == await body_of(api, task_id)
    assert (both.code, beyond.code, before.code) == (2, 1, 1)
    assert beyond.err == "refused: The request can't be understood: at: the log's last sequence is 3\n"
    asks = await tasktrail("show", task_id, "--at", "3", env=env)
    assert "answer with" not in asks.err, "what it needed then it may not need now"


async def test_a_long_history_is_read_page_by_page(api: Api) -> None:
    task_id = await api.begin(start_run(), *(produce("x", offset=at) for at in range(5)))

    def read() -> list[int]:
        with Client(Where(url=api.url, token=api.token)) as client:
            return [told.recorded.record.version for told in client.history(task_id, page=2)]

    assert await asyncio.to_thread(read) == list(range(1, 8))


async def test_on_the_service_s_machine_the_data_directory_is_enough(api: Api, tmp_path: Path) -> None:
    write_local(tmp_path, Local(token=api.token, url=api.url))
    said = await tasktrail("submit", "x", "--data-dir", str(tmp_path), env=environment())
    assert said.code == 0, said
    shown = await tasktrail("show", said.out.strip(), env=environment(TASKTRAIL_DATA_DIR=str(tmp_path)))
    assert shown.code == 0, shown
    write_local(tmp_path, Local(token=api.token))
    stopped = await tasktrail("show", NO_TASK, "--data-dir", str(tmp_path), env=environment())
    assert (stopped.code, stopped.err.endswith("is stopped; `tasktrail serve` starts it\n")) == (2, True)


def test_a_token_kept_for_this_machine_is_sent_to_no_other(tmp_path: Path) -> None:
    write_local(tmp_path, Local(token="tt_kept", url="http://127.0.0.1:8080"))
    assert where(tmp_path, None, None).token == "tt_kept"
    with pytest.raises(Exception, match="--url needs a token"):
        where(tmp_path, "https://elsewhere.example", None)


async def test_what_the_service_refuses_is_one_line_and_exit_code_1(api: Api) -> None:
    env = environment(api)
    unknown, stranger, wrong = await asyncio.gather(
        tasktrail("show", NO_TASK, env=env),
        tasktrail("cancel", NO_TASK, env=env | {"TASKTRAIL_TOKEN": "tt_unknown"}),
        tasktrail("submit", "x", "--agent", "nobody", "--session", "not a session", env=env),
    )
    assert unknown == Said(1, "", "refused: Not found: no such task\n")
    assert stranger.code == wrong.code == 1
    assert stranger.err.startswith("refused: A valid token is needed: is it unknown, expired or revoked?")
    assert wrong.err.startswith("refused: ")
    assert wrong.err.count("\n") == 1


async def test_what_could_not_be_tried_is_one_line_and_exit_code_2(api: Api, tmp_path: Path) -> None:
    async def html(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
        writer.close()

    nowhere, env = environment(TASKTRAIL_RETRY_FOR="0.2"), environment(api)
    async with await asyncio.start_server(html, "127.0.0.1", 0) as other:
        another_product = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}"
        said = await asyncio.gather(
            tasktrail("submit", "x", "--data-dir", str(tmp_path), env=nowhere),
            tasktrail("submit", "x", "--url", "http://127.0.0.1:1", env=nowhere),
            tasktrail("submit", "x", "--url", "http://127.0.0.1:1", "--token", "t", env=nowhere),
            tasktrail("watch", NO_TASK, "--url", "http://127.0.0.1:1", "--token", "t", env=nowhere),
            tasktrail("show", NO_TASK, "--url", "127.0.0.1:1", "--token", "t", env=nowhere),
            tasktrail("show", NO_TASK, "--url", another_product, env=env),
            tasktrail("watch", NO_TASK, "--url", another_product, env=env),
        )
    whys = [
        "no service is known in",
        "--url needs a token",
        "whether or not it was created",
        "no answer from http://127.0.0.1:1",
        "not a URL",
        "can't be read",
        "does not stream events",
    ]
    for one, why in zip(said, whys, strict=True):
        assert (one.code, one.out) == (2, ""), one
        assert why in one.err


async def test_bad_usage_is_named_and_exit_code_2(api: Api) -> None:
    env = environment(api)
    said = await asyncio.gather(
        tasktrail("show", "../health", env=env),
        tasktrail("submit", "x", "--metadata", "[1]", env=env),
        tasktrail("submit", "{", "--json-input", env=env),
        tasktrail("submit", "@no-such-file", env=env),
        tasktrail("submit", "x", "--wait", "--watch", env=env),
        tasktrail("submit", "x", "--key", "é", env=env),
    )
    whys = ["no task id", "not a JSON object", "no JSON", "No such file", "not both", "printable ASCII"]
    for one, why in zip(said, whys, strict=True):
        assert one.code == 2, one
        assert why in one.err
