"""The audit commands as auditors have them: on NATS, on a stopped service's directory, on a file."""

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from app.audit_key import audit_key
from app.audit_options import needs
from app.local import Local, write_local
from app.plots import draw
from app.replies import NotTried
from eventstore.lock import Lock
from eventstore.server import EmbeddedServer
from projections.lines import line_of
from projections.proof import named
from projections.statistics import Figures, Statistics, Window
from tests.log.logs import until
from tests.projections.lives import ANN, BOB
from tests.walk.auditing import (
    ENDED,
    KEY,
    NAME,
    OPEN,
    RECORDS,
    audit,
    exported,
    has_more,
    records_of,
    write_history,
    write_much,
)
from tests.walk.terminal import Terminal, environment, interrupt


@pytest.fixture
async def nats(server: EmbeddedServer) -> str:
    """Where the log with the history is."""
    await write_history(server.address)
    return server.address.url


@pytest.fixture
async def data_dir(server: EmbeddedServer, nats: str, tmp_path: Path) -> Path:
    """The same, stopped."""
    assert nats
    await server.stop()
    return tmp_path / "nats-data"


async def test_a_log_is_verified_on_nats_in_a_file_and_in_a_stopped_directory(
    server: EmbeddedServer, nats: str, tmp_path: Path
):
    file = await exported(nats, tmp_path / "log.ndjson")
    on_nats, in_file = await asyncio.gather(
        audit("verify", "--nats-url", nats, "--json"), audit("verify", "--file", file, "--json", "--key", NAME)
    )
    await server.stop()
    stopped = await audit("verify", "--data-dir", tmp_path / "nats-data")
    for said, given in ((on_nats, False), (in_file, True)):
        assert said.code == 0, said
        verified = json.loads(said.out)
        assert (verified["records"], verified["signed_up_to"], verified["checkpoints"]) == (RECORDS, RECORDS - 1, 1)
        assert (verified["keys"], verified["keys_given"], verified["whole"]) == ([NAME], given, True)
        assert (verified["fault_count"], verified["faults"], verified["broken"]) == (0, [], [])
    assert stopped.code == 0, stopped
    assert (
        f"signed up to record {RECORDS - 1}; checkpoints: 1; keys (trusted because the log itself says" in stopped.out
    )
    assert stopped.out.splitlines()[-2:] == [f"  {NAME}", "no faults"]


async def test_a_key_that_did_not_sign_and_a_checkpoint_of_another_log_are_faults(nats: str, tmp_path: Path):
    other = "ed25519:" + "A" * 43 + "="
    file = await exported(nats, tmp_path / "log.ndjson")
    held = tmp_path / "held"
    held.write_bytes(file.read_bytes().splitlines()[-1].replace(b'"actor":"checkpoints"', b'"actor":"somebody"'))
    by_key, by_held = await asyncio.gather(
        audit("verify", "--file", file, "--key", other), audit("verify", "--nats-url", nats, "--held", held)
    )
    assert by_key.code == by_held.code == 1
    assert f"\n  record {RECORDS}, checkpoints: it is signed by {NAME}, which is none of the keys given" in by_key.out
    assert "it is not the checkpoint that you hold: the log is another one" in by_held.out


async def test_the_key_is_told_from_its_file_from_the_log_and_from_an_export(
    server: EmbeddedServer, nats: str, tmp_path: Path
):
    file = await exported(nats, tmp_path / "log.ndjson")
    on_nats, in_file = await asyncio.gather(audit("key", "--nats-url", nats), audit("key", "--file", file))
    await server.stop()
    stopped = await audit("key", "--data-dir", tmp_path / "nats-data")
    own = audit_key(tmp_path / "nats-data" / "audit-key.pem")
    of_file = await audit("key", "--data-dir", tmp_path / "nats-data")
    assert on_nats.out == in_file.out == stopped.out == f"{NAME}\n"
    assert of_file.code == 0
    assert of_file.out != stopped.out
    assert own.public_key() != KEY.public_key()


async def test_an_export_of_a_stopped_service_ends_with_a_checkpoint_signed_now(data_dir: Path, tmp_path: Path):
    own = named(audit_key(data_dir / "audit-key.pem").public_key())
    said = await audit("export", "--data-dir", data_dir, "--output", tmp_path / "log.ndjson")
    assert said.code == 0, said
    # All of it was signed already, but by another key.
    assert "9 records written, up to record 9 of the log" in said.err
    assert f"checkpoint 9 is the last, signed by {own}" in said.err
    again = await audit("export", "--data-dir", data_dir, "--output", tmp_path / "log.ndjson")
    assert f"checkpoint 9 is the last, signed by {own}" in again.err


async def test_an_export_is_imported_with_its_blobs_and_verifies_there(nats: str, tmp_path: Path):
    file = await exported(nats, tmp_path / "log.ndjson")
    empty = tmp_path / "restored"
    imported = await audit("import", file, "--data-dir", empty)
    assert imported.code == 0, imported
    assert f"{RECORDS} records imported\n" in imported.out
    verified = await audit("verify", "--data-dir", empty, "--held", file, "--key", NAME)
    assert verified.code == 0, verified
    assert f"signed up to record {RECORDS - 1}; checkpoints: 1; keys (as given)" in verified.out


async def test_with_dispatch_what_is_imported_is_as_if_it_had_begun_there(
    server: EmbeddedServer, nats: str, tmp_path: Path
):
    file = await exported(nats, tmp_path / "log.ndjson")
    other = await EmbeddedServer.start(tmp_path / "other")
    try:
        said = await audit("import", file, "--dispatch", "--nats-url", other.address.url)
        assert said.code == 0, said
        assert [one.imported for one in await records_of(other.address)] == [False] * RECORDS
    finally:
        await other.stop()


async def test_a_file_with_a_fault_is_not_imported(nats: str, tmp_path: Path):
    file = await exported(nats, tmp_path / "log.ndjson")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"actor":"test"', b'"actor":"none"', 1))
    cut = tmp_path / "cut.ndjson"
    lines = whole.splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:3] + lines[4:]))
    spoilt, holey = await asyncio.gather(
        audit("import", file, "--data-dir", tmp_path / "one"), audit("import", cut, "--data-dir", tmp_path / "two")
    )
    assert (spoilt.code, holey.code) == (1, 1)
    assert re.fullmatch(f"nothing was written: at byte [\\d,]+ of {file}: [^:]+\n", spoilt.err)
    assert "record 2: it is missing" in holey.err
    assert not (tmp_path / "one").exists()


async def test_text_and_json_count_the_same_faults(nats: str, tmp_path: Path):
    file = await exported(nats, tmp_path / "log.ndjson")
    file.write_bytes(file.read_bytes().replace(b'"actor":"test"', b'"actor":"none"', 1)[:-1])
    as_text, as_json = await asyncio.gather(audit("verify", "--file", file), audit("verify", "--file", file, "--json"))
    assert (as_text.code, as_json.code) == (1, 1)
    verified = json.loads(as_json.out)
    assert verified["fault_count"] == len(verified["faults"]) + len(verified["broken"])
    assert f"{verified['fault_count']} faults:" in as_text.out
    assert len(as_text.out.split(" faults:\n")[1].splitlines()) == verified["fault_count"]


async def test_an_export_says_whether_its_last_record_is_a_checkpoint(data_dir: Path, tmp_path: Path):
    unsigned = await audit("export", "--data-dir", data_dir, "--output", tmp_path / "unsigned")
    audit_key(data_dir / "audit-key.pem")
    later = await audit("export", "--data-dir", data_dir, "--since", "2036-01-01", "--output", tmp_path / "later")
    assert (unsigned.code, later.code) == (0, 0), (unsigned, later)
    assert f"no checkpoint was asked for: there is no key {data_dir / 'audit-key.pem'}" in unsigned.err
    assert "0 records written" in later.err
    assert "no checkpoint is in it: the last one, " in later.err
    assert " is the last, signed by" not in later.err


async def test_a_killed_export_goes_on_to_the_same_bytes(server: EmbeddedServer, tmp_path: Path):
    await write_much(server.address, 100)
    where = ["--nats-url", server.address.url]
    path = tmp_path / "log.ndjson"
    terminal = Terminal()
    try:
        for end in ("killed", "interrupted"):
            before = path.stat().st_size if path.exists() else 0
            process = await terminal.begin("audit", "export", *where, "--output", str(path), env=environment())
            await until(lambda begun=before, of=process: has_more(path, begun) or of.returncode is not None)
            if process.returncode is None:
                process.kill() if end == "killed" else interrupt(process)
            await process.communicate()
    finally:
        await terminal.close()
    await exported(server.address.url, path)
    assert path.read_bytes().partition(b"\n")[2] == b"".join(map(line_of, await records_of(server.address)))


async def test_an_export_can_be_piped_and_told_in_other_words(nats: str, tmp_path: Path):
    piped, events, table = await asyncio.gather(
        audit("export", "--nats-url", nats, "--output", "-", "--owner", BOB),
        audit("export", "--nats-url", nats, "--output", "-", "--format", "cloudevents"),
        audit("export", "--nats-url", nats, "--output", tmp_path / "log.parquet", "--format", "parquet"),
    )
    header, bobs, checkpoint = map(json.loads, piped.out.splitlines())
    assert (header["tasktrail_export"], header["whole"], header["selection"]["owner"]) == (1, False, BOB)
    assert (bobs["record"]["fact"]["title"], checkpoint["subject"]) == ("d", "checkpoints")
    assert [json.loads(line)["specversion"] for line in events.out.splitlines()] == ["1.0"] * RECORDS
    assert table.code == 0, table
    assert "8 records written" in table.err
    again = await audit("export", "--nats-url", nats, "--output", tmp_path / "log.parquet", "--format", "parquet")
    assert again.code == 2
    assert "is there already; a Parquet file can't be continued" in again.err


async def test_what_happened_is_counted_and_drawn(nats: str, tmp_path: Path):
    as_table, anns = await asyncio.gather(
        audit("stats", "--nats-url", nats, "--plot", tmp_path / "plot.png"),
        audit("stats", "--nats-url", nats, "--owner", ANN, "--since", "2026-01-02", "--json"),
    )
    assert as_table.code == 0, as_table
    assert as_table.out.splitlines()[0] == "4 tasks created, 2 of them not ended; 7 facts"
    assert any(line.split()[:3] == ["simulator", "4", "1"] for line in as_table.out.splitlines())
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    figures = msgspec.json.decode(anns.out, type=Figures)
    assert [(day.created, day.cancelled) for day in figures.days] == [(2, 1)]
    draw(figures, "the log", tmp_path / "plot.svg")
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
    nothing = Statistics(Window(since=datetime(2030, 1, 1, tzinfo=UTC))).figures()
    draw(nothing, "the log", tmp_path / "nothing.svg")
    drawn = (tmp_path / "nothing.svg").read_text()
    assert drawn.count("<!-- nothing in this time -->") == 4
    assert "<!-- completed -->" not in drawn, "no legend of what is not there"


async def test_what_is_wrong_is_named(nats: str, tmp_path: Path):
    file = await exported(nats, tmp_path / "log.ndjson", "--after", "2")
    notes, empty, events = tmp_path / "notes", tmp_path / "empty", tmp_path / "events"
    await exported(nats, events, "--format", "cloudevents")
    notes.write_text("my own\n")
    at = ["--nats-url", nats]
    mistakes: list[tuple[list[str | Path], str]] = [
        (["verify", *at, "--url", "http://127.0.0.1:1"], "one of them"),
        (["verify", *at, "--key", "rsa:AAAA"], "not a public key"),
        (["verify", *at, "--held", notes], "holds no checkpoint"),
        (["verify", *at, "--task", "task_00000000-0000-0000-0000-00000000ffff"], "has no record of task_"),
        (["verify", "--file", file], "does not begin with the first record"),
        (["verify", "--data-dir", empty], "no service is known in"),
        (["export", *at, "--output", notes], "is there already, and is no such export"),
        (["export", *at, "--output", file], "is an export of something else"),
        (["export", *at, "--output", "-", "--format", "parquet"], "needs a file"),
        (["export", *at, "--output", tmp_path / "no" / "such", "--format", "ndjson"], "No such file"),
        (["stats", *at, "--plot", "plot.pdf"], "drawn as .png or .svg"),
        (["stats", *at, "--since", "2026-02-01", "--until", "2026-01-31"], "--since is not before --until"),
        (["verify", "--file", events], f"{events} is a CloudEvents export; only an NDJSON export"),
        (["import", events, "--data-dir", empty], f"{events} is a CloudEvents export; only an NDJSON export"),
        (["export", *at, "--after", "9", "--output", tmp_path / "new"], "--after 9 is beyond the end: the last record"),
    ]
    for words, what in mistakes:
        said = await audit(*words)
        assert said.code == 2, (words, said)
        assert what in " ".join(said.err.split()), (words, said)
        assert said.out == "", words


async def test_a_directory_that_is_in_use_is_asked_through_its_service_or_refused(data_dir: Path):
    lock = await Lock.take(data_dir)
    try:
        nobody = await audit("verify", "--data-dir", data_dir)
        write_local(data_dir, Local(token="tt_dev", url="http://127.0.0.1:1"))
        somebody = await audit("verify", "--data-dir", data_dir)
    finally:
        lock.free()
    assert (nobody.code, somebody.code) == (2, 2)
    assert "is in use, by a service that is starting or by another audit" in nobody.err
    assert "no answer from http://127.0.0.1:1" in somebody.err


def test_a_package_that_is_missing_is_named_with_what_brings_it():
    with pytest.raises(NotTried, match=r"--plot needs no_such_package: pip install 'tasktrail\[audit\]'"):
        needs("no_such_package", "--plot")


async def test_one_task_is_verified_alone(nats: str):
    said = await audit("verify", "--nats-url", nats, "--task", ENDED.removeprefix("task_"))
    assert said.code == 0, said
    assert "4 records" in said.out  # its own, and the checkpoint
    assert OPEN not in said.out
