"""Old logs stay readable: a stored example of every fact ever released, read by today's code as it was meant then.

`released/<version>.ndjson` holds records as that release stored them, each fact with all its fields and with only those
that it must have. `<version>.meaning.ndjson` tells line by line what they say with nothing left out. Neither is ever
changed once its release is out: whatever is new goes into the coming release's file.
"""

import hashlib
import json
from datetime import datetime
from functools import reduce
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec import Struct

from eventstore.codec import decode, decode_checkpoint, decode_session, encode, recorded, session_recorded, unpack
from eventstore.events import (
    Checkpoint,
    Fact,
    LogRecord,
    Record,
    SessionFact,
    SessionRecord,
    TaskCompleted,
    TaskFact,
    UnknownFact,
    tag_of,
)
from eventstore.log import Arrival, Recorded, task_subject
from projections import session
from projections.task import INITIAL, Task, evolve
from tests.given import OWNER, TASK_ID

FOLDER = Path(__file__).with_name("released")
RELEASES = sorted(path.name.removesuffix(".ndjson") for path in FOLDER.glob("*[0-9].ndjson"))
FACTS: tuple[type[Fact], ...] = (*get_args(TaskFact), *get_args(SessionFact), Checkpoint)
BLOB = b'{"result":"a result that was too large to be here"}'


def lines_of(name: str) -> list[bytes]:
    return (FOLDER / f"{name}.ndjson").read_bytes().splitlines()


LINES = [line for release in RELEASES for line in lines_of(release)]
MEANINGS = [line for release in RELEASES for line in lines_of(f"{release}.meaning")]
IDS = [json.loads(line)["record_id"] for line in LINES]


def read(line: bytes) -> Record | SessionRecord | LogRecord:
    if b'"type":"log.' in line:
        return decode_checkpoint(line)
    if b'"type":"session.' in line:
        return decode_session(line)
    return decode(line)


def told(value: object) -> object:
    """What a record says with nothing left out, as JSON."""
    match value:
        case Struct():
            names = {name: told(getattr(value, name)) for name in value.__struct_fields__}
            return {"type": value.__struct_config__.tag} | names if isinstance(value, Fact) else names
        case tuple():
            return [told(one) for one in msgspec.convert(value, list[object])]
        case datetime():
            return value.isoformat()
        case _:
            return value


def keeps(before: object, now: object) -> bool:
    """Whether all that was said is still said: nothing but new fields may have come."""
    match before, now:
        case dict(), dict():
            then, today = msgspec.convert([before, now], tuple[dict[str, object], dict[str, object]])
            return all(name in today and keeps(value, today[name]) for name, value in then.items())
        case list(), list():
            was, is_ = msgspec.convert([before, now], tuple[list[object], list[object]])
            return len(was) == len(is_) and all(map(keeps, was, is_))
        case _:
            return before == now


def example(tag: str, *left_out: str) -> Record:
    """The released line of this fact that says nothing of these fields."""
    found = [line for line in LINES if json.loads(line)["fact"]["type"] == tag]
    record = read(next(line for line in found if not {*left_out} & json.loads(line)["fact"].keys()))
    assert isinstance(record, Record)
    return record


def after(*records: Record) -> Task:
    """The task to which these happened."""
    history: list[Recorded] = [
        recorded(Arrival(number, task_subject(OWNER, TASK_ID), encode(record)))
        for number, record in enumerate(records, 1)
    ]
    return reduce(evolve, history, INITIAL)


@pytest.mark.parametrize("line", LINES, ids=IDS)
def test_an_old_record_is_read_and_loses_nothing(line: bytes) -> None:
    record = read(line)
    assert not isinstance(record.fact, UnknownFact)
    assert json.loads(msgspec.json.encode(record)) == json.loads(line)


@pytest.mark.parametrize(("line", "meaning"), list(zip(LINES, MEANINGS, strict=True)), ids=IDS)
def test_an_old_record_means_what_it_meant(line: bytes, meaning: bytes) -> None:
    now = told(read(line))
    assert keeps(json.loads(meaning), now), json.dumps(now)


def test_old_records_are_folded_whatever_they_say() -> None:
    records = [record for record in map(read, LINES) if isinstance(record, Record)]
    task = after(*records)
    assert task.sequence == len(records)
    assert task.unknown is None
    folded = session.INITIAL
    said = [line for line in LINES if b'"type":"session.' in line]
    for number, line in enumerate(said, 1):
        folded = session.evolve(folded, session_recorded(Arrival(number, "sessions.dev.s1", line)))
    assert (folded.title, folded.deletion, folded.unknown) == (None, len(said), None)


def test_every_fact_and_field_has_a_released_example() -> None:
    examples: dict[str, list[set[str]]] = {}
    for fact in (json.loads(line)["fact"] for line in LINES):
        examples.setdefault(fact["type"], []).append(fact.keys() - {"type"})
    advice = f"add a line to tests/lifecycle/released/ (to the coming release's file; there are {RELEASES})"
    assert examples.keys() == {str(fact.__struct_config__.tag) for fact in FACTS}, advice
    for fact in FACTS:
        seen, tag = examples[str(fact.__struct_config__.tag)], str(fact.__struct_config__.tag)
        assert set(fact.__struct_fields__) <= set[str]().union(*seen), f"{tag}: {advice}"
        must = {field.name for field in msgspec.structs.fields(fact) if field.required}
        assert must in seen, f"{tag}: none with only what it must have; {advice}"
    stamps = set[str]().union(*(json.loads(line).keys() for line in LINES))
    assert stamps == set(Record.__struct_fields__), advice


def test_what_an_old_record_left_out_means_what_it_meant_in_a_tasks_life() -> None:
    born = example("task.created", "max_failures", "runnable", "approval_mode")
    begun = after(born)
    assert (begun.status, begun.runnable, begun.max_failures) == ("pending", True, 5)
    assert (begun.approval_mode, begun.dialect, begun.deadline) == ("auto", "native", None)
    running = (born, example("task.started", "lost"))
    assert (after(*running).failures, after(*running).status) == (0, "running")
    broken = after(*running, example("task.run_failed", "counts", "runnable", "retry_at"))
    assert (broken.failures, broken.runnable, broken.retry_at) == (1, True, None)
    told_to = after(*running, example("task.input_received", "step", "runnable"))
    assert (told_to.inbox, told_to.steps, told_to.status) == (1, 0, "running")
    planned = after(*running, example("task.plan_proposed", "needs_approval"))
    assert (planned.status, planned.review, planned.steps) == ("running", None, 1)


def test_a_field_that_an_old_record_keeps_in_a_blob_is_found_there() -> None:
    record = next(read(line) for line in LINES if "blob" in json.loads(line))
    assert isinstance(record, Record)
    assert record.blob is not None
    assert isinstance(record.fact, TaskCompleted)
    assert (record.blob.sha256, record.blob.bytes) == (hashlib.sha256(BLOB).hexdigest(), len(BLOB))
    assert after(record).blobs == {"result": record.blob}
    assert unpack(record.fact, BLOB) == TaskCompleted(run=1, result="a result that was too large to be here")
    assert tag_of(record.fact) == "task.completed"
