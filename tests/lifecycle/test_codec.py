"""Records and their bytes: what is written today is read by every later release."""

import json
import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from eventstore.codec import MAX_INLINE, TAGS, Unreadable, decode, encode, field_of, pack, recorded, unpack
from eventstore.events import (
    BlobReference,
    FileReference,
    InputReceived,
    InputRequested,
    PartialProduced,
    PauseRequested,
    PlannedStep,
    PlanProposed,
    Problem,
    Record,
    ReviewDecided,
    ReviewRequested,
    RunFailed,
    StepFinished,
    StepStarted,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFact,
    TaskFailed,
    TaskPaused,
    TaskQueued,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    ToolUsed,
    UnknownFact,
    Usage,
    tag_of,
)
from eventstore.log import Arrival, task_subject
from tests.given import OWNER, TASK_ID, completed, created, history, input_requested, started, tool_used

TAGS_FOR_EVER = [
    "task.created",
    "task.queued",
    "task.started",
    "task.step_started",
    "task.step_finished",
    "task.tool_used",
    "task.partial",
    "task.plan_proposed",
    "task.input_requested",
    "task.input_received",
    "task.review_requested",
    "task.review_decided",
    "task.pause_requested",
    "task.paused",
    "task.resumed",
    "task.run_failed",
    "task.completed",
    "task.failed",
    "task.cancelled",
    "task.timed_out",
]
"""A tag is never renamed: records that bear it exist."""

TEXT = st.text(max_size=20)
NAME = st.text(string.ascii_lowercase, min_size=1, max_size=8)
COUNT = st.integers(0, 2**53)
AMOUNT = st.floats(0, 1e9, allow_nan=False)
TIME = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]))
JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MAYBE = st.none() | TEXT
PROBLEM = st.builds(Problem, code=NAME, message=TEXT)
USAGE = st.builds(Usage, provider=MAYBE, model=MAYBE, input_tokens=COUNT, output_tokens=COUNT, cost=AMOUNT)
FILE = st.builds(FileReference, name=TEXT, blob=NAME, sha256=NAME, bytes=COUNT, media_type=TEXT)
PLANNED = st.builds(PlannedStep, tool=NAME, why=TEXT)
BLOB = st.builds(BlobReference, name=NAME, sha256=NAME, bytes=COUNT, fields=st.lists(NAME, max_size=2).map(tuple))
KIND = st.sampled_from(
    ["tool", "effect", "text", "ask", "review", "plan", "inbox", "clock", "random", "sleep", "usage"]
)
ANSWERED = {
    "run": COUNT,
    "step": COUNT,
    "output": JSON,
    "error": st.none() | PROBLEM,
    "took": AMOUNT,
    "input_sha256": TEXT,
    "message": MAYBE,
    "usage": st.none() | USAGE,
}
FACTS: dict[type[TaskFact], st.SearchStrategy[TaskFact]] = {
    TaskCreated: st.builds(
        TaskCreated,
        agent=NAME,
        fingerprint=TEXT,
        input=JSON,
        title=MAYBE,
        session_id=MAYBE,
        mode=MAYBE,
        approval_mode=st.sampled_from(["auto", "dry_run", "confirm"]),
        deadline=st.none() | TIME,
        max_failures=COUNT,
        dialect=NAME,
        metadata=st.dictionaries(TEXT, JSON, max_size=3),
        files=st.lists(FILE, max_size=2).map(tuple),
        runnable=st.booleans(),
    ),
    TaskQueued: st.builds(TaskQueued, limit=COUNT),
    TaskStarted: st.builds(TaskStarted, run=COUNT, worker=TEXT, lost=st.booleans()),
    StepStarted: st.builds(StepStarted, run=COUNT, step=COUNT, kind=KIND, name=TEXT, input=JSON, input_sha256=TEXT),
    StepFinished: st.builds(StepFinished, kind=KIND, name=TEXT, **ANSWERED),
    ToolUsed: st.builds(ToolUsed, tool=TEXT, **ANSWERED),
    PartialProduced: st.builds(PartialProduced, run=COUNT, step=COUNT, offset=COUNT, text=TEXT),
    PlanProposed: st.builds(
        PlanProposed,
        run=COUNT,
        step=COUNT,
        plan=st.lists(PLANNED, max_size=3).map(tuple),
        needs_approval=st.booleans(),
        input_sha256=TEXT,
    ),
    InputRequested: st.builds(InputRequested, run=COUNT, step=COUNT, question=TEXT, input_sha256=TEXT),
    InputReceived: st.builds(InputReceived, text=TEXT, step=st.none() | COUNT, runnable=st.booleans()),
    ReviewRequested: st.builds(ReviewRequested, run=COUNT, step=COUNT, subject=TEXT, input_sha256=TEXT),
    ReviewDecided: st.builds(ReviewDecided, step=COUNT, approved=st.booleans(), feedback=MAYBE, runnable=st.booleans()),
    PauseRequested: st.builds(PauseRequested, reason=MAYBE),
    TaskPaused: st.builds(TaskPaused, reason=MAYBE),
    TaskResumed: st.builds(TaskResumed, runnable=st.booleans()),
    RunFailed: st.builds(RunFailed, run=COUNT, error=PROBLEM, retry_at=st.none() | TIME, runnable=st.booleans()),
    TaskCompleted: st.builds(TaskCompleted, run=COUNT, result=MAYBE),
    TaskFailed: st.builds(TaskFailed, code=TEXT, message=TEXT),
    TaskCancelled: st.builds(TaskCancelled, by=TEXT, reason=MAYBE),
    TaskTimedOut: st.builds(TaskTimedOut, deadline=TIME),
}
STAMPS = {
    "record_id": NAME,
    "version": COUNT,
    "at": TIME,
    "actor": TEXT,
    "causation_id": MAYBE,
    "correlation_id": MAYBE,
    "previous": TEXT,
    "traceparent": MAYBE,
    "key": MAYBE,
    "blob": st.none() | BLOB,
}
LARGE = 200 * 1024


def record_of(fact: TaskFact | UnknownFact) -> Record:
    """A record that says this."""
    return replace(history(created())[0].record, record_id="r1", fact=fact)


# Tags


def test_the_tags_are_those_that_were_promised() -> None:
    assert sorted(TAGS) == sorted(TAGS_FOR_EVER)


def test_every_kind_of_fact_is_tried_here() -> None:
    assert sorted(str(kind.__struct_config__.tag) for kind in FACTS) == sorted(TAGS_FOR_EVER)


# Bytes and back


def test_what_a_newer_release_nested_too_deeply_is_unreadable():
    stored = encode(history(created())[0].record)
    deep = b'"fact":{"type":"task.newer","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    with pytest.raises(Unreadable, match="too deeply"):
        decode(stored[: stored.index(b'"fact":')] + deep)


@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.__name__)
def test_a_record_is_read_back_as_it_was_written(kind: type[TaskFact]) -> None:
    @settings(max_examples=20, deadline=None)
    @given(st.builds(Record, fact=FACTS[kind], **STAMPS))
    def holds(record: Record) -> None:
        stored = encode(record)
        assert decode(stored) == record
        assert encode(decode(stored)) == stored
        assert b"\n" not in stored
        assert b"\r" not in stored
        assert json.loads(stored)["fact"]["type"] == tag_of(record.fact)

    holds()


def test_a_newer_releases_fact_is_kept_with_all_it_says() -> None:
    stored = encode(record_of(started())).replace(b'"task.started"', b'"task.forked"')
    record = decode(stored)
    assert record.fact == UnknownFact(tag="task.forked", fields={"run": 1, "worker": "w1"})
    assert tag_of(record.fact) == "task.forked"
    assert replace(record, fact=started()) == record_of(started())


def test_a_newer_releases_fields_are_passed_over() -> None:
    stored = encode(record_of(started())).replace(b'"run":1', b'"run":1,"zone":"eu"')
    assert decode(stored).fact == started()


@pytest.mark.parametrize("field", ["at", "deadline"])
def test_a_time_without_a_zone_is_not_guessed(field: str) -> None:
    stored = encode(record_of(TaskTimedOut(deadline=datetime(2026, 5, 5, tzinfo=UTC))))
    time = json.loads(stored)["at"] if field == "at" else "2026-05-05T00:00:00Z"
    naive = stored.replace(f'"{field}":"{time}"'.encode(), f'"{field}":"{time[:-1]}"'.encode())
    assert naive != stored
    with pytest.raises(Unreadable):
        decode(naive)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"not json",
        b"\xff\xfe",
        encode(record_of(started()))[:-1],
        encode(record_of(started())).replace(b'"run":1', b'"run":"one"'),
        encode(record_of(started())).replace(b'"type":"task.started",', b""),
        encode(record_of(started())).replace(b'"task.started"', b"7"),
        encode(record_of(started())).replace(b'"version":1', b'"version":null'),
    ],
)
def test_garbage_is_unreadable(garbage: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(garbage)
    with pytest.raises(Unreadable):
        recorded(Arrival(1, task_subject(OWNER, TASK_ID), garbage))


def test_a_message_of_another_kind_of_subject_is_no_tasks_record() -> None:
    with pytest.raises(Unreadable):
        recorded(Arrival(1, "sessions.ann.s1", encode(record_of(started()))))


def test_a_record_in_the_log_knows_whose_it_is() -> None:
    stored = encode(record_of(started()))
    told = recorded(Arrival(9, task_subject(OWNER, TASK_ID), stored))
    assert (told.sequence, told.owner, told.task_id, told.stored) == (9, OWNER, TASK_ID, stored)


# What is too big for a message


@pytest.mark.parametrize("fact", [started(), completed(result="x" * LARGE), UnknownFact(tag="task.forked", fields={})])
def test_a_record_that_fits_is_stored_whole(fact: TaskFact | UnknownFact) -> None:
    assert pack(record_of(fact)) == (encode(record_of(fact)), None)


@pytest.mark.parametrize(
    ("fact", "moved"),
    [
        (completed(result="x" * MAX_INLINE), ("result",)),
        (created(input={"text": "x" * MAX_INLINE}), ("input",)),
        (replace(tool_used(output=["x" * LARGE]), message="y" * (LARGE + 1)), ("message", "output")),
        (replace(created(input="x" * MAX_INLINE), metadata={"a": "y" * MAX_INLINE}, title="z"), ("input", "metadata")),
        (replace(tool_used(output="x" * MAX_INLINE), message="y" * 2000, usage=Usage(cost=0.5)), ("output",)),
    ],
)
def test_large_fields_move_to_a_blob_and_come_back(fact: TaskFact, moved: tuple[str, ...]) -> None:
    stored, blob = pack(record_of(fact))
    assert blob is not None
    assert len(stored) <= MAX_INLINE
    record = decode(stored)
    assert record.blob is not None
    assert (record.blob.name, record.blob.bytes, sorted(record.blob.fields)) == ("r1", len(blob), sorted(moved))
    assert not isinstance(record.fact, UnknownFact)
    assert record.fact != fact
    assert unpack(record.fact, blob) == fact
    assert all(field_of(blob, name) == getattr(fact, name) for name in moved)
    assert replace(record, fact=fact, blob=None) == record_of(fact)


def test_a_fold_never_misses_a_small_field_because_a_large_one_could_not_move() -> None:
    retry_at = datetime(2026, 5, 5, tzinfo=UTC)
    failed = RunFailed(run=1, error=Problem(code="broken", message="x" * MAX_INLINE), retry_at=retry_at)
    assert pack(record_of(failed)) == (encode(record_of(failed)), None)


def test_a_fact_without_a_field_to_move_is_stored_whole() -> None:
    asked = record_of(input_requested(question="x" * MAX_INLINE))
    assert pack(asked) == (encode(asked), None)


@pytest.mark.parametrize("blob", [b"", b"[]", b'{"result":7}'])
def test_a_blob_that_does_not_fit_its_fact_is_unreadable(blob: bytes) -> None:
    with pytest.raises(Unreadable):
        unpack(completed(result=None), blob)
