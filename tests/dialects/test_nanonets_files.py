"""Files that come with a run: stored before their task, read by its agent, kept for an audit; and broken forms."""

import hashlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from app.settings import HttpSettings
from eventstore.connection import NatsAddress
from eventstore.events import TaskCreated, TaskId
from eventstore.jetstream import STREAM, JetStreamLog
from eventstore.stream import Stream
from eventstore.sweep import sweep_blobs
from projections.audit import Verification
from projections.exports import Selection, export, ndjson
from projections.lines import blob_of
from projections.sources import LogSource, verify
from tests.api import DEV, Api, running
from tests.dialects.nanonets import RUN, TASKS, Nanonets, speaking
from tests.dialects.niyra import scenario

SMALL, LARGE, EMPTY = b"%PDF-1.7 \x00\xff", bytes(range(256)) * 2_000, b""
FILES = [
    ("files", ("report.pdf", SMALL, "application/pdf")),
    ("files", ("../../data/large.bin", LARGE, "no media type")),
    ("files", ("empty.txt", EMPTY, "text/plain")),
]


def described(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.fixture
async def api(nats_address: NatsAddress) -> AsyncGenerator[Api]:
    """An API whose tasks nobody works on, and which takes little."""
    async with running(nats_address, http=HttpSettings(max_upload_bytes=1_000_000, max_body_bytes=20_000)) as api:
        yield api


async def test_an_agent_reads_the_files_that_came_with_its_task(nats_address: NatsAddress, tmp_path: Path):
    async with speaking(nats_address, tmp_path) as nanonets:
        query = scenario({"read": "report.pdf"}, {"read": "large.bin"}, {"read": "empty.txt"}, {"complete": "Read."})
        config = '{"output_schema": {"type": "object"}}'
        data = {"query": query, "output_config": config, "unknown": "x"}
        begun = await nanonets.api.client.post(RUN, data=data, files=FILES)
        assert begun.status_code == 200, begun.text
        task_id = begun.json()["task_id"]
        await nanonets.reach(task_id, "completed")
        feed = (await nanonets.get(task_id, "/result")).json()["feed"]
        read = [item["output"] for item in feed if item["type"] == "task.tool_used"]
        assert read == [described("report.pdf", SMALL), described("large.bin", LARGE), described("empty.txt", EMPTY)]
        task = (await nanonets.api.client.get(f"/tasks/{task_id}")).json()
        assert task["files"] == [
            described("report.pdf", SMALL) | {"media_type": "application/pdf"},
            described("large.bin", LARGE) | {"media_type": "application/octet-stream"},
            described("empty.txt", EMPTY) | {"media_type": "text/plain"},
        ]
        assert task["metadata"] == {"output_schema": {"type": "object"}}
        await files_alone(nanonets)
        await a_file_that_never_came(nanonets)


async def files_alone(nanonets: Nanonets) -> None:
    """Without a query the simulator's plan names them."""
    begun = await nanonets.api.client.post(RUN, files=FILES[:1])
    task_id = begun.json()["task_id"]
    assert (await nanonets.reach(task_id, "completed"))["title"] == "report.pdf"
    plan = (await nanonets.api.client.get(f"/tasks/{task_id}")).json()["plan"]
    assert plan[0] == {"tool": "read_file", "why": f"report.pdf, {len(SMALL)} bytes"}


async def a_file_that_never_came(nanonets: Nanonets) -> None:
    task_id = await nanonets.run({"read": "nothing.pdf"})
    await nanonets.reach(task_id, "failed")
    assert (await nanonets.get(task_id, "/result")).json()["error"]["code"] == "no_such_file"


async def test_a_file_is_given_back_by_its_digest_to_its_owner_only(api: Api, stranger: httpx.AsyncClient):
    task_id = (await api.client.post(RUN, files=FILES)).json()["task_id"]
    for _, (_, content, _) in FILES:
        url = f"/tasks/{task_id}/blobs/{hashlib.sha256(content).hexdigest()}"
        answer = await api.client.get(url)
        assert (answer.status_code, answer.content) == (200, content)
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert (await stranger.get(url)).status_code == 404
    created = (await api.client.get(f"/tasks/{task_id}/events")).json()["data"][0]
    for file, (_, (_, content, _)) in zip(created["fact"]["files"], FILES, strict=True):
        assert (await api.client.get(f"/events/blobs/{file['blob']}")).content == content


async def test_the_files_of_a_task_are_not_swept_and_those_of_none_are(api: Api):
    log = api.rooms.tasks.log
    assert isinstance(log, JetStreamLog)
    key = {"Idempotency-Key": "once"}
    first = await api.client.post(RUN, files=FILES, headers=key)
    again = await api.client.post(RUN, files=FILES, headers=key)
    assert first.json()["task_id"] == again.json()["task_id"]
    other = await api.client.post(RUN, files=FILES[:1], headers=key)
    assert other.status_code == 409
    (created,) = await log.read(DEV, TaskId(f"task_{first.json()['task_id']}"))
    assert isinstance(created.record.fact, TaskCreated)
    blobs = [file.blob for file in created.record.fact.files]
    facts = Stream(api.rooms.connection, STREAM)
    await facts.open()
    late = datetime.now(UTC) + timedelta(hours=2)
    assert await sweep_blobs(log.blobs, facts, now=late) == 0, "a repeat stores nothing"
    await log.blobs.put("file_orphan", b"x", subject="tasks.0.dev.task_0", expected=0)
    assert await sweep_blobs(log.blobs, facts, now=late) == 1
    await facts.close()
    assert [await log.blobs.get(name) for name in blobs] == [SMALL, LARGE, EMPTY]


async def test_an_export_holds_the_files_and_a_verification_looks_at_them(api: Api, tmp_path: Path):
    log = api.rooms.tasks.log
    await api.client.post(RUN, files=FILES)
    source = LogSource(log)
    form = ndjson("test", datetime.now(UTC), source, Selection())
    with (tmp_path / "log.ndjson").open("wb") as out:
        out.write(form.header)
        await export(source, out, form, Selection(), quiet, after=0, up_to=await log.last_sequence())
    held = (blob_of(line) for line in (tmp_path / "log.ndjson").read_bytes().splitlines(keepends=True))
    assert [blob[1] for blob in held if blob is not None] == [SMALL, LARGE, EMPTY]
    assert await faults(source) == []
    assert await faults(Forgetful(log)) == ["is missing"] * 3


def quiet(position: int, end: int) -> None:
    """Nobody looks."""


class Forgetful(LogSource):
    """The log, had its blobs been lost."""

    async def blob(self, name: str) -> bytes | None:
        del name
        return None


async def faults(source: LogSource) -> list[str]:
    verification = Verification(whole=True)
    await verify(source, verification, quiet)
    return [fault.what[-len("is missing") :] for fault in verification.faults]


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


def part(head: str, content: bytes = b"") -> bytes:
    return f"Content-Disposition: form-data; {head}\r\n\r\n".encode() + content


QUERY = part('name="query"', b"x")
BROKEN = [
    b"",
    b"no form",
    b"--x",
    b"--x\r\n\r\n",
    form(),
    form(QUERY, end=b""),
    form(QUERY)[:-20],
    form(QUERY).replace(b"\r\n", b"\n"),
    form(part('name="query"', b"\xff")),
    form(part('name="query"', b" ")),
    form(part("", b"x")),
    form(part('name="files"', b"no name")),
    form(part('name="other"; filename="a.txt"', b"x")),
    form(QUERY, part('name="output_config"', b"{")),
    form(QUERY, part('name="output_config"', b"[]")),
    form(QUERY, part('name="output_config"', b'{"output_schema": 5}')),
    form(QUERY, part('name="output_config"', b'{"output_schema": {"a": ' + b"[" * 5_000 + b"]" * 5_000 + b"}}")),
    form(part('name="query"', b"x" * 20_001)),
    form(QUERY, part('name="files"; filename="a"', b"x" * 1_000_000)),
    form(*[QUERY] * 100),
    form(b"X: " + b"y" * 10_000 + b"\r\n\r\n"),
    form(b"Content-Disposition: form-data; name=\xff\r\n\r\n"),
]


async def test_a_broken_form_is_a_bad_request_and_leaves_nothing_behind(api: Api):
    for content in BROKEN:
        answer = await api.client.post(
            RUN, content=content, headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert (answer.status_code, answer.json().keys()) == (400, {"error"}), (content[:200], answer.text)
        assert answer.json()["error"]
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", f"multipart/form-data; boundary={'x' * 300}"):
        answer = await api.client.post(RUN, content=form(QUERY), headers={"Content-Type": kind})
        assert (answer.status_code, answer.json().keys()) == (400, {"error"}), answer.text
    assert await api.arrivals() == []
    assert isinstance(api.rooms.tasks.log, JetStreamLog)
    assert (await api.rooms.tasks.log.blobs.stream.state()).bytes == 0


WRONG_FIELDS = [
    ('name="file"; filename="h.txt"', "send files in the field `files`, not in `file`"),
    ('name="files"', "`files` must be a file part with a filename (curl: -F files=@name)"),
    ('name="query"; filename="big.txt"', "`query` is text, not a file"),
    ('name="output_config"; filename="a.json"', "`output_config` is text, not a file"),
]


async def test_a_file_in_the_wrong_field_is_told_where_files_go(api: Api):
    for head, told in WRONG_FIELDS:
        content = form(QUERY, part(head, b"x"))
        answer = await api.client.post(
            RUN, content=content, headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert (answer.status_code, answer.json()) == (400, {"error": told})
    assert await api.arrivals() == []


async def test_a_file_keeps_its_name_without_its_folders_and_what_can_not_be_printed(api: Api):
    for said, kept in (
        ("/etc/passwd", "passwd"),
        ("C:\\data\\r\u00e9sum\u00e9.pdf", "r\u00e9sum\u00e9.pdf"),
        ("..", ".."),
        ("dir/", "file"),
        ("x" * 1_000, "x" * 255),
        ("bell\x07.txt", "bell.txt"),
    ):
        content = form(part(f'name="files"; filename="{said}"', b"x"))
        answer = await api.client.post(
            RUN, content=content, headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code == 200, (said, answer.text)
        task = (await api.client.get(f"/tasks/{answer.json()['task_id']}")).json()
        assert [file["name"] for file in task["files"]] == [kept]


async def test_who_leaves_in_the_middle_of_a_form_leaves_nothing_behind(api: Api):
    async def slowly() -> AsyncGenerator[bytes]:
        yield form(QUERY, part('name="files"; filename="a"', b"x" * 100_000))[:90_000]
        # Others are served while this one takes its time.
        assert (await api.client.get(TASKS.replace("/tasks", "/agents"))).status_code == 200
        raise ConnectionError("it leaves")

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises(ConnectionError):
        await api.client.post(RUN, content=slowly(), headers=headers)
    whole = await api.client.post(RUN, files=FILES[:1])
    assert whole.status_code == 200
    assert len(await api.arrivals()) == 1
