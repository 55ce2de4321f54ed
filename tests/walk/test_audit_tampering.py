"""A log that was really tampered with, in its store: whatever was done, `audit verify` names it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from eventstore.log import Arrival
from eventstore.server import EmbeddedServer
from tests.walk import auditing
from tests.walk.auditing import (
    CANCELLED,
    ENDED,
    OPEN,
    RECORDS,
    flip,
    records_of,
    remove,
    rewrite,
    with_actor,
    write_history,
)
from tests.walk.terminal import Said, environment, tasktrail

Change = Callable[[list[Arrival]], list[Arrival]]


@pytest.fixture(autouse=True)
async def history(server: EmbeddedServer) -> None:
    """The log is whole and signed before it is tampered with."""
    await write_history(server.address)


async def verified(server: EmbeddedServer, *options: str) -> Said:
    return await tasktrail("audit", "verify", "--nats-url", server.address.url, *options, env=environment())


def changed(sequence: int) -> Change:
    return lambda records: [with_actor(one) if one.sequence == sequence else one for one in records]


def swapped(sequence: int) -> Change:
    def change(records: list[Arrival]) -> list[Arrival]:
        records[sequence - 1], records[sequence] = records[sequence], records[sequence - 1]
        return records

    return change


def without(*sequences: int) -> Change:
    return lambda records: [one for one in records if one.sequence not in sequences]


REWRITTEN: dict[str, tuple[Change, list[str]]] = {
    "a record changed": (changed(2), [f"record 2, {ENDED}: version 2 was changed", "record 2: it is not the record"]),
    "a task's last record changed": (changed(3), ["record 3: it is not the record that was signed (checkpoint 8)"]),
    "two records swapped": (
        swapped(1),
        [
            f"record 1, {ENDED}: it is version 2, and the 1 before it are missing",
            "record 1: it is not the record that was signed",
            "record 2: it is not the record that was signed",
        ],
    ),
    "a record taken out, the others moved up": (
        without(2),
        [f"record 2, {ENDED}: it is version 3, and version 2 is missing (after record 1)", "record 2: it is not"],
    ),
    "a whole task taken out, the others moved up": (without(4, 5), ["record 4: it is not the record that was signed"]),
}


@pytest.mark.parametrize("what", REWRITTEN)
async def test_a_log_that_was_written_anew_is_named(what: str, server: EmbeddedServer):
    change, faults = REWRITTEN[what]
    await rewrite(server.archive_address, change)
    said = await verified(server, "--key", auditing.NAME)
    assert said.code == 1, said
    for fault in faults:
        assert f"\n  {fault}" in said.out, said.out


REMOVED = {
    "a record, and a task's last one": (
        (2, 5),
        [
            f"record 3, {ENDED}: it is version 3, and version 2 is missing",
            *(
                f"record {gone}: {what}"
                for gone in (2, 5)
                for what in ("it is missing", "it was signed, and is missing")
            ),
        ],
    ),
    "a whole task": ((4, 5), ["record 4: it and all up to 5 are missing", "record 4: it was signed, and is missing"]),
}


@pytest.mark.parametrize("what", REMOVED)
async def test_what_was_deleted_is_named(what: str, server: EmbeddedServer):
    sequences, faults = REMOVED[what]
    await remove(server.archive_address, *sequences)
    said = await verified(server)
    assert said.code == 1, said
    for fault in faults:
        assert f"\n  {fault}" in said.out, said.out


async def test_a_tail_cut_off_with_its_checkpoint_is_named_to_whoever_holds_that(
    server: EmbeddedServer, tmp_path: Path
):
    held = tmp_path / "held.ndjson"
    where = ("--nats-url", server.address.url)
    exported = await tasktrail("audit", "export", *where, "--output", str(held), env=environment())
    assert exported.code == 0, exported
    assert (await verified(server, "--held", str(held))).code == 0
    await rewrite(server.archive_address, without(3, *range(6, RECORDS + 1)))
    assert (await verified(server)).code == 0, "nothing in it says so any more"
    said = await verified(server, "--held", str(held))
    assert said.code == 1
    assert f"\n  record {RECORDS}, checkpoints: the checkpoint that you hold is missing: the log was cut" in said.out


async def test_one_task_is_verified_against_the_checkpoints(server: EmbeddedServer):
    await rewrite(server.archive_address, changed(5))
    spoilt, whole = await verified(server, "--task", CANCELLED), await verified(server, "--task", OPEN)
    assert spoilt.code == 1
    assert "\n  record 5: it is not the record that was signed (checkpoint 8)" in spoilt.out
    assert (whole.code, whole.out.splitlines()[-1]) == (0, "no faults")


async def test_a_byte_that_was_changed_on_the_disk_is_named(server: EmbeddedServer, tmp_path: Path):
    record = (await records_of(server.address))[1]
    await server.stop()
    flip(tmp_path / "nats-data", record.stored)
    said = await tasktrail("audit", "verify", "--data-dir", str(tmp_path / "nats-data"), env=environment())
    assert said.code == 1, said
    assert "\n  record 2" in said.out, said.out
