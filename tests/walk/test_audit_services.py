"""The audit commands on a running service: what a token is shown, a line that is cut, and a log that was imported."""

import asyncio
import json
from pathlib import Path

import pytest

from eventstore.connection import NatsAddress
from eventstore.events import Owner
from projections.lines import line_of
from tests.api import running
from tests.log.logs import SOON_S, until
from tests.projections.lives import ANN, BOB
from tests.walk.auditing import NAME, OPEN, RECORDS, audit, exported, has_more, records_of, write_history, write_much
from tests.walk.serving import serving
from tests.walk.terminal import Terminal, end_of, environment, line_to


async def test_a_running_service_shows_all_of_its_log_or_one_owners_part(nats_address: NatsAddress, tmp_path: Path):
    await write_history(nats_address)
    async with running(nats_address) as api:
        await api.rooms.tokens.add("tt_bob", BOB, ("audit",))
        await api.rooms.tokens.add("tt_eve", Owner("eve"), ("tasks:read",))
        where = ("--url", api.url, "--token")
        whole, bobs, eves = await asyncio.gather(
            audit("verify", *where, api.token, "--json"),
            audit("verify", *where, "tt_bob"),
            audit("verify", *where, "tt_eve"),
        )
        file = tmp_path / "bob.ndjson"
        exported_by_bob = await audit("export", *where, "tt_bob", "--output", file)
    assert (whole.code, bobs.code, eves.code) == (0, 0, 2), (whole, bobs, eves)
    verified = json.loads(whole.out)
    assert (verified["records"], verified["signed_up_to"], verified["keys"]) == (RECORDS, RECORDS - 1, [NAME])
    assert ": 1 records in" in bobs.out
    assert "only one owner's records are shown here" in bobs.out
    assert "this needs a token with scope audit" in eves.err
    assert exported_by_bob.code == 0, exported_by_bob
    header, record = map(json.loads, file.read_bytes().splitlines())
    assert (header["whole"], header["selection"]["owner"]) == (False, BOB)
    assert record["record"]["fact"]["title"] == "d"
    assert "this token is shown the records of bob only" in exported_by_bob.err
    assert (await audit("verify", "--file", file)).code == 0
    assert (await audit("import", file, "--data-dir", tmp_path / "no")).code == 2


async def test_an_export_over_a_line_that_is_cut_misses_nothing(nats_address: NatsAddress, tmp_path: Path):
    await write_much(nats_address, 100)
    path = tmp_path / "log.ndjson"
    terminal = Terminal()
    try:
        async with running(nats_address) as api, line_to(api.url) as line:
            where = ("--url", line.url, "--token", api.token)
            process = await terminal.begin("audit", "export", *where, "--output", str(path), env=environment())
            for _ in range(3):
                before = path.stat().st_size if path.exists() else 0
                await until(lambda begun=before: has_more(path, begun) or process.returncode is not None)
                line.cut()
            said = await end_of(process)
    finally:
        await terminal.close()
    assert said.code == 0, said
    assert path.read_bytes().partition(b"\n")[2] == b"".join(map(line_of, await records_of(nats_address)))


@pytest.mark.parametrize("dispatched", [False, True])
async def test_what_was_imported_runs_only_where_it_was_told_to(
    nats_address: NatsAddress, tmp_path: Path, dispatched: bool
):
    await write_history(nats_address)
    file = await exported(nats_address.url, tmp_path / "log.ndjson")
    restored = tmp_path / "restored"
    imported = await audit("import", file, "--data-dir", restored, *(["--dispatch"] if dispatched else []))
    assert imported.code == 0, imported
    async with serving(restored) as service, service.client() as client:
        # What comes later runs to its end, so what came before had its chance.
        ours = await client.post("/tasks", json={"input": {"steps": []}}, headers={"Prefer": "wait=20"})
        assert ours.json()["status"] == "completed", ours.text
        async with asyncio.timeout(SOON_S):
            while True:
                page = await client.get("/events", params={"owner": ANN, "task_id": OPEN})
                facts = [line["record"]["fact"]["type"] for line in page.json()["data"]]
                if not dispatched or facts[-1] == "task.completed":
                    break
    assert facts[0] == "task.created"
    assert (len(facts) > 1) == dispatched
