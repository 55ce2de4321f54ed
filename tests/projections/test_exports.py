"""Exports: the log in lines, continued wherever they stopped, read back, and refused where they are something else."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from app.checkpoints import Checkpoints
from eventstore.connection import NatsAddress
from eventstore.jetstream import JetStreamLog
from eventstore.log import CHECKPOINTS, Arrival, task_subject
from eventstore.memory import MemoryLog
from projections import exports
from projections.audit import Verification
from projections.exports import Form, NotContinued, Selection, begun, check_continued, cloudevents, export, ndjson
from projections.imports import CantImport, ExportFile, faults_in, is_subject, last_checkpoint_in, put_back
from projections.lines import BadLine
from projections.parquet import to_parquet
from projections.sources import LogSource, Source, verify
from tests.given import BEGIN, cancelled, completed, started
from tests.log.logs import jetstream
from tests.projections.lives import ANN, BOB, Scribe, born, numbered

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MADE_AT = datetime(2026, 2, 3, tzinfo=UTC)
ALL = Selection()
TASKS = 12


def quiet(position: int, end: int) -> None:
    """Nobody looks."""


@asynccontextmanager
async def written_log() -> AsyncGenerator[MemoryLog]:
    """Tasks of two owners, one with a blob, and checkpoints."""
    log = MemoryLog()
    scribe, checkpoints = Scribe(log), Checkpoints(log, KEY)
    for number in range(TASKS):
        owner, at = (ANN, BOB)[number % 2], BEGIN + timedelta(hours=number)
        life = (born("é \u2028", input="x" * 300_000 if number == 3 else "x"), started(), completed())
        await scribe.write(owner, numbered(number), *life, at=at)
        if number % 5 == 4:
            await checkpoints.write()
    await scribe.write(ANN, numbered(99), born("it goes on"), at=BEGIN + timedelta(hours=99))
    await checkpoints.write()
    try:
        yield log
    finally:
        await checkpoints.close()
        await log.close()


async def exported(source: Source, path: Path, form: Form | None = None, selection: Selection = ALL) -> bytes:
    """Begin or continue this file, to the log's end; what it holds then."""
    await write(source, path, form or ndjson("0.1.0", MADE_AT, source, selection), selection)
    return path.read_bytes()  # noqa: ASYNC240  # a test's loop has nothing else to do


async def write(source: Source, path: Path, form: Form, selection: Selection) -> None:
    kept = begun(path, form)
    await check_continued(kept, form, source)
    with path.open("r+b") as file:
        file.seek(kept.size)
        file.truncate()
        await export(source, file, form, selection, quiet, after=kept.sequence, up_to=await source.end())


async def export_of(path: Path) -> bytes:
    async with written_log() as log:
        return await exported(LogSource(log), path)


def modes(directory: Path) -> dict[str, int]:
    return {one.name: one.stat().st_mode & 0o777 for one in directory.iterdir()}


async def faults_of(path: Path) -> list[str]:
    """What a verification of the file names."""
    file = ExportFile.open(path)
    verification = Verification(whole=file.whole)
    await verify(file, verification, quiet)
    return [str(fault) for fault in verification.faults] + file.broken


@pytest.mark.parametrize("make", [ndjson, cloudevents])
async def test_cut_anywhere_it_is_continued_to_the_very_same_bytes(
    make: Callable[..., Form], tmp_path_factory: pytest.TempPathFactory
):
    directory = tmp_path_factory.mktemp("exports")
    async with written_log() as log:
        source = LogSource(log)
        form = cloudevents() if make is cloudevents else ndjson("0.1.0", MADE_AT, source, ALL)
        whole = await exported(source, directory / "whole", form)
        ends = [at + 1 for at, byte in enumerate(whole) if byte == 10]
        places = {0, 1, len(whole), *(end + by for end in ends for by in (-1, 0, 1, 40) if end + by <= len(whole))}
        for place in sorted(places):
            path = directory / f"cut-{place}"
            path.write_bytes(whole[:place])
            assert await exported(source, path, form) == whole


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1))
def test_cut_at_any_byte_it_is_continued_to_the_very_same_bytes(share: float):
    async def check() -> None:
        with TemporaryDirectory() as directory:
            async with written_log() as log:
                whole = await exported(LogSource(log), Path(directory) / "whole")
                path = Path(directory) / "cut"
                path.write_bytes(whole[: int(share * len(whole))])
                assert await exported(LogSource(log), path) == whole

    asyncio.run(check())


async def test_what_is_new_is_added_to_an_export(tmp_path: Path):
    async with written_log() as log:
        before = await exported(LogSource(log), tmp_path / "log")
        await Scribe(log).write(BOB, numbered(100), born("later"))
        after = await exported(LogSource(log), tmp_path / "log")
    assert after.startswith(before)
    assert after[len(before) :].count(b"\n") == 1


async def test_each_line_is_json_and_holds_the_stored_bytes(tmp_path: Path):
    async with written_log() as log:
        whole = await exported(LogSource(log), tmp_path / "log")
    header, *lines = [json.loads(line) for line in whole.splitlines()]
    assert (header["tasktrail_export"], header["whole"]) == (1, True)
    records = [line for line in lines if "record" in line]
    assert [line["sequence"] for line in records] == [one.sequence for one in log.arrivals]
    (blob,) = [at for at, line in enumerate(lines) if "blob" in line]
    assert lines[blob + 1]["record"]["blob"]["name"] == lines[blob]["blob"]
    assert b64decode(lines[blob]["content"]) == await log.blobs.get(lines[blob]["blob"])
    assert all(line.stored in whole for line in log.arrivals)


async def test_an_export_is_verified_as_the_log_is(tmp_path: Path):
    await export_of(tmp_path / "log")
    assert await faults_of(tmp_path / "log") == []


async def test_one_owners_export_holds_nobody_elses_records_and_is_proven_by_the_checkpoints(tmp_path: Path):
    selection = Selection(owner=BOB)
    async with written_log() as log:
        whole = await exported(LogSource(log), tmp_path / "log", selection=selection)
    subjects = {line["subject"] for line in map(json.loads, whole.splitlines()[1:]) if "record" in line}
    assert subjects == {CHECKPOINTS, *(task_subject(BOB, numbered(number)) for number in range(1, TASKS, 2))}
    assert await faults_of(tmp_path / "log") == []
    (tmp_path / "log").write_bytes(whole.replace(b'"result":"done"', b'"result":"none"', 1))
    faults = await faults_of(tmp_path / "log")
    assert len(faults) == 2
    assert any("it is not the record that was signed" in fault for fault in faults)
    assert any("is not as an export writes it" in fault for fault in faults)


async def test_an_export_since_a_time_or_after_a_sequence_holds_the_rest_only(tmp_path: Path):
    async with written_log() as log:
        late = Selection(since=BEGIN + timedelta(hours=8), after=20)
        whole = await exported(LogSource(log), tmp_path / "log", selection=late)
        begin = [json.loads(one.stored)["at"] for one in log.arrivals]
    wanted = [
        at + 1
        for at, when in enumerate(begin)
        if at >= 20 and datetime.fromisoformat(when) >= late.since  # pyright: ignore[reportOperatorIssue]  # it is set above
    ]
    assert [line["sequence"] for line in map(json.loads, whole.splitlines()[1:])] == wanted
    assert ExportFile.open(tmp_path / "log").begins_later


async def test_what_is_there_and_is_something_else_is_never_written_over(tmp_path: Path):
    path = tmp_path / "log"
    async with written_log() as log, written_log() as other:
        source = LogSource(log)
        for content in (b"my own notes", b"my own notes\n", b'{"tasktrail_export":1}\n', b'{"tasktrail_export":2}\n'):
            path.write_bytes(content)
            with pytest.raises((NotContinued, BadLine)):
                await exported(source, path)
            assert path.read_bytes() == content
        path.unlink()
        whole = await exported(source, path)
        with pytest.raises(NotContinued, match="something else"):
            await exported(source, path, selection=Selection(owner=ANN))
        with pytest.raises(NotContinued, match="another log"):
            await exported(LogSource(other), path)
        assert path.read_bytes() == whole


async def test_what_was_done_to_a_file_is_named(tmp_path: Path):
    path = tmp_path / "log"
    lines = (await export_of(path)).splitlines(keepends=True)
    fourth = next(at for at, line in enumerate(lines) if line.startswith(b'{"sequence":4,'))
    blob = next(at for at, line in enumerate(lines) if line.startswith(exports.BLOB))
    cases = {
        "record 4": [
            *lines[:fourth],
            lines[fourth].replace(b'"actor":"test"', b'"actor":"nobody"'),
            *lines[fourth + 1 :],
        ],
        "record 4: it is missing": [*lines[:fourth], *lines[fourth + 1 :]],
        "out of order": [*lines[:fourth], lines[fourth + 1], lines[fourth], *lines[fourth + 2 :]],
        "at byte": [*lines[:fourth], b"{" + lines[fourth], *lines[fourth + 1 :]],
        "is missing": [*lines[:blob], *lines[blob + 1 :]],
        "was changed": [*lines[:blob], lines[blob].replace(b'"content":"e', b'"content":"f'), *lines[blob + 1 :]],
        "cut off": [*lines[:-1], lines[-1][:-1]],
    }
    for named, tampered in cases.items():
        path.write_bytes(b"".join(tampered))
        found = await faults_of(path)
        assert any(named in fault for fault in found), (named, found)


async def test_what_is_no_export_is_told_by_what_it_is(tmp_path: Path):
    path = tmp_path / "log"
    whole = await export_of(path)
    async with written_log() as log:
        await exported(LogSource(log), tmp_path / "events", cloudevents())
    events = (tmp_path / "events").read_bytes()
    for content, what in (
        (b"", "is empty"),
        (events, "is a CloudEvents export"),
        (b"PAR1\x15\x04", "is a Parquet export"),
        (b"\xef\xbb\xbf" + whole, "begins with a byte order mark"),
        (whole.split(b"\n", 1)[1], "has no header"),
        (whole.replace(b"\n", b"\r\n"), "is not as it was written: its line endings were changed"),
        (b'{"data":[]}\n', "is no export"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadLine, match=f"^{path} {what}.*; only an NDJSON export"):
            ExportFile.open(path)


async def test_a_header_that_contradicts_itself_is_a_fault(tmp_path: Path):
    path = tmp_path / "log"
    whole = await export_of(path)
    for told, instead in (
        (b'"whole":true', b'"whole":false'),
        (b'"owner":null', b'"owner":"ann"'),
        (b'"after":0', b'"after":3'),
    ):
        path.write_bytes(whole.replace(told, instead, 1))
        found = await faults_of(path)
        assert any("the header says that this is" in fault for fault in found), (told, found)


async def test_an_export_is_readable_by_its_user_alone(tmp_path: Path):
    await export_of(tmp_path / "log")
    assert modes(tmp_path) == {"log": 0o600}
    to_parquet(tmp_path / "log", tmp_path / "table", quiet)
    assert modes(tmp_path) == {"table": 0o600}


async def test_the_last_checkpoint_of_an_export_or_of_one_line_is_found(tmp_path: Path):
    whole = await export_of(tmp_path / "log")
    (tmp_path / "line").write_bytes(whole.splitlines()[-1])
    found, alone = last_checkpoint_in(tmp_path / "log"), last_checkpoint_in(tmp_path / "line")
    assert (found.sequence, found.subject, found.stored) == (alone.sequence, CHECKPOINTS, alone.stored)
    (tmp_path / "none").write_bytes(whole.splitlines()[0])
    with pytest.raises(BadLine, match="holds no checkpoint"):
        last_checkpoint_in(tmp_path / "none")


def test_a_table_has_a_row_for_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]  # it has none

    monkeypatch.setattr("projections.parquet.ROW_BYTES", 2_000)
    monkeypatch.setattr("projections.imports.BATCH", 5)
    whole = asyncio.run(export_of(tmp_path / "log"))
    count = to_parquet(tmp_path / "log", tmp_path / "log.parquet", quiet)
    read = parquet.read_table(tmp_path / "log.parquet").to_pylist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # it has no types
    rows = msgspec.convert(read, list[dict[str, object]])
    assert count == len(rows) == 3 * TASKS + 5 - 1
    assert [row["sequence"] for row in rows] == [*range(1, count + 1)]
    assert all(isinstance(row["record"], bytes) and row["record"] in whole for row in rows)
    assert (rows[0]["owner"], rows[0]["task_id"], rows[0]["type"]) == (ANN, numbered(0), "task.created")
    assert (rows[0]["version"], rows[0]["at"], rows[0]["actor"]) == (1, BEGIN, "test")
    assert [row["sequence"] for row in rows if row["blob"]] == [10]
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


@pytest.fixture
async def empty_log(nats_address: NatsAddress) -> AsyncGenerator[JetStreamLog]:
    async with jetstream(nats_address) as log:
        yield log


async def test_an_export_is_put_back_whole_with_its_blobs(empty_log: JetStreamLog, tmp_path: Path):
    whole = await export_of(tmp_path / "log")
    file = ExportFile.open(tmp_path / "log", strict=True)
    assert (await faults_in(file, quiet)).fault_count == 0
    written = await put_back(file, empty_log, quiet, imported=True)
    assert written == await empty_log.last_sequence()
    again = await exported(LogSource(empty_log), tmp_path / "again")
    assert again.replace(b',"imported":true}', b"}") == whole
    assert [one.imported for one in await empty_log.read(ANN, numbered(0))] == [True, True, True]


async def test_an_import_that_was_interrupted_goes_on(empty_log: JetStreamLog, tmp_path: Path):
    whole = await export_of(tmp_path / "log")
    file = ExportFile.open(tmp_path / "log", strict=True)
    records = [arrival for batch in file.batches() for arrival in batch]
    beginning = [Arrival(one.sequence, one.subject, one.stored, imported=True) for one in records[:7]]
    await empty_log.put_back(beginning)
    assert await put_back(file, empty_log, quiet, imported=True) == len(records) - 7
    assert await put_back(file, empty_log, quiet, imported=True) == 0
    again = await exported(LogSource(empty_log), tmp_path / "again")
    assert again.replace(b',"imported":true}', b"}") == whole


async def test_a_log_that_holds_anything_else_takes_no_import(empty_log: JetStreamLog, tmp_path: Path):
    await export_of(tmp_path / "log")
    await export_of(tmp_path / "other")
    file, other = ExportFile.open(tmp_path / "log"), ExportFile.open(tmp_path / "other")
    await put_back(file, empty_log, quiet, imported=True)
    with pytest.raises(CantImport, match="is not that of"):
        await put_back(other, empty_log, quiet, imported=True)
    with pytest.raises(CantImport, match="came by an import that does not dispatch"):
        await put_back(file, empty_log, quiet, imported=False)
    await Scribe(empty_log).write(BOB, numbered(100), born("of its own"), cancelled())
    with pytest.raises(CantImport, match="not empty"):
        await put_back(file, empty_log, quiet, imported=True)


async def test_a_part_of_a_log_is_not_imported(tmp_path: Path):
    async with written_log() as log:
        await exported(LogSource(log), tmp_path / "log", selection=Selection(after=3))
    with pytest.raises(CantImport, match="no whole export"):
        await faults_in(ExportFile.open(tmp_path / "log", strict=True), quiet)


async def test_a_line_that_no_export_writes_is_not_imported(tmp_path: Path):
    path = tmp_path / "log"
    whole = await export_of(path)
    for tampered in (
        whole.replace(b'{"sequence":1,', b'{"sequence":1, ', 1),
        whole.replace(task_subject(ANN, numbered(0)).encode(), b"$JS.API.STREAM.DELETE.TASKS", 1),
        whole[:-2] + b"\n",
        whole[:-1],
    ):
        path.write_bytes(tampered)
        with pytest.raises(BadLine, match="at byte"):
            await faults_in(ExportFile.open(path, strict=True), quiet)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "tasks.>",
        "work.simulator",
        "$JS.API.STREAM.DELETE.TASKS",
        "sessions.ann.*",
        "sessions.*.s1",
        "sessions.ann",
        "sessions.ann.a=",
        "tasks.1.ann.x",
    ],
)
def test_a_subject_that_the_log_has_not_is_none(subject: str):
    assert not is_subject(subject)


@pytest.mark.parametrize("subject", [CHECKPOINTS, "sessions.ann.s1", task_subject(ANN, numbered(1))])
def test_a_subject_of_the_log_is_one(subject: str):
    assert is_subject(subject)
