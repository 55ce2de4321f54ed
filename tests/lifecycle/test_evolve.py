"""One task folded from its facts: what a poll is told."""

from datetime import timedelta

import pytest

from eventstore.codec import MAX_INLINE
from eventstore.events import BlobReference, Problem, RunFailed, TaskFact, UnknownFact, Usage
from projections.task import ENDED, INITIAL, MAX_KEYS, Status, StepInHand, evolve
from tests.given import (
    BEGIN,
    DEADLINE,
    LIVES,
    OWNER,
    TASK_ID,
    With,
    answer,
    cancelled,
    completed,
    created,
    failed,
    fold,
    history,
    input_requested,
    message,
    pause_requested,
    paused,
    plan_proposed,
    queued,
    record_after,
    resumed,
    review_decided,
    review_requested,
    run_failed,
    started,
    step_finished,
    step_started,
    timed_out,
    tool_used,
)


@pytest.mark.parametrize("status", LIVES)
def test_each_life_leads_to_its_status(status: Status) -> None:
    task = fold(*LIVES[status])
    assert task.status == status
    assert task.ended == (status in ENDED)
    assert task.runnable == (status in {"pending", "queued"})
    assert (task.worker is not None) == (status == "running")


def test_a_task_knows_whose_it_is_and_where_its_history_ends() -> None:
    records = history(created(), started(), completed())
    task = fold(created(), started(), completed())
    assert (fold(created()).task_id, fold(created()).owner) == (TASK_ID, OWNER)
    assert (task.task_id, task.owner, task.correlation_id) == (TASK_ID, OWNER, "request-1")
    assert (task.version, task.sequence, task.sha256) == (3, records[-1].sequence, records[-1].sha256)
    assert [later.record.previous for later in records] == ["", records[0].sha256, records[1].sha256]


def test_a_task_is_what_was_asked_for() -> None:
    task = fold(created(agent="researcher", input={"q": [1]}, deadline=DEADLINE, max_failures=2))
    assert (task.agent, task.input, task.deadline, task.max_failures) == ("researcher", {"q": [1]}, DEADLINE, 2)
    assert (task.status, task.runnable, task.run, task.fingerprint) == ("pending", True, 0, "f1")


# Times


def test_times_are_those_of_the_records() -> None:
    task = fold(created(), queued(), started(), run_failed(), started(2), completed(2))
    assert task.created_at == BEGIN
    assert task.started_at == BEGIN + timedelta(seconds=2)
    assert task.updated_at == task.ended_at == BEGIN + timedelta(seconds=5)


def test_a_task_that_lives_has_no_end_and_one_that_never_ran_no_start() -> None:
    assert fold(created(), started(), paused()).ended_at is None
    assert fold(created(), cancelled()).started_at is None


# Ends


def test_each_end_says_why() -> None:
    assert fold(created(), started(), completed(result="42")).result == "42"
    assert fold(created(), failed("bad", message="oh")).error == Problem(code="bad", message="oh")
    assert fold(created(), cancelled()).error == Problem(code="cancelled", message="cancelled")
    assert fold(created(), cancelled(reason="no")).error == Problem(code="cancelled", message="no")
    assert fold(created(deadline=DEADLINE), timed_out()).error == Problem(
        code="timeout", message="not done by its deadline, 2026-01-01T13:00:00.000+00:00"
    )


@pytest.mark.parametrize("end", [completed(), failed(), cancelled(), timed_out()])
@pytest.mark.parametrize(
    "life",
    [
        (created(), started(), step_started(), pause_requested()),
        (created(), started(), input_requested(), paused()),
        (created(), started(), review_requested()),
        (created(), started(), run_failed(retry_at=DEADLINE)),
    ],
)
def test_an_ended_task_waits_for_nothing(life: tuple[TaskFact, ...], end: TaskFact) -> None:
    task = fold(*life, end)
    assert (task.question, task.review, task.asked_step, task.in_hand) == (None, None, None, None)
    assert (task.worker, task.runnable, task.pause_requested, task.retry_at) == (None, False, False, None)


# Steps and tools


def test_the_step_in_hand_is_the_one_started_and_not_answered() -> None:
    life = (created(), started(), step_started(0))
    assert fold(*life).in_hand == StepInHand(step=0, kind="tool", name="search", run=1)
    assert fold(*life, started(2, lost=True)).in_hand is None
    assert (fold(*life, tool_used(0)).in_hand, fold(*life, tool_used(0)).steps) == (None, 1)


def test_tools_are_told_once_in_order_of_first_use() -> None:
    tools = ("search", "read", "search", "write", "read")
    task = fold(created(), started(), *(tool_used(step, tool=tool) for step, tool in enumerate(tools)))
    assert task.tools_used == ("search", "read", "write")
    assert task.steps == 5


def test_a_tool_that_only_started_was_not_used() -> None:
    assert fold(created(), started(), step_started()).tools_used == ()


def test_usage_adds_up_under_the_last_model_named() -> None:
    spent = [
        Usage(provider="acme", model="a-1", input_tokens=10, output_tokens=1, cost=0.1),
        Usage(input_tokens=5, cost=0.2),
        Usage(provider="other", model="b-2", output_tokens=2),
    ]
    task = fold(
        created(),
        started(),
        step_finished(0, usage=spent[0]),
        tool_used(1, usage=spent[1]),
        step_finished(2),
        step_finished(3, usage=spent[2]),
    )
    assert task.usage == Usage(provider="other", model="b-2", input_tokens=15, output_tokens=3, cost=0.3)
    assert fold(created(), started(), step_finished(0)).usage is None


# Failures and runs


def test_a_failed_run_waits_for_its_next_try() -> None:
    task = fold(created(), started(), run_failed(retry_at=DEADLINE))
    assert (task.status, task.runnable, task.failures, task.retry_at) == ("pending", True, 1, DEADLINE)
    assert task.last_error == Problem(code="broken", message="it broke")
    again = fold(created(), started(), run_failed(retry_at=DEADLINE), started(2))
    assert (again.status, again.run, again.failures, again.retry_at) == ("running", 2, 1, None)


def test_a_lost_run_counts_as_a_failure() -> None:
    task = fold(created(), started(), started(2, worker="w2", lost=True))
    assert (task.run, task.worker, task.failures) == (2, "w2", 1)
    assert task.last_error == Problem(code="worker_lost", message="run 1 was lost")


def test_four_questions_give_five_runs_and_no_failure() -> None:
    asked: list[TaskFact] = []
    for step in range(4):
        asked += [started(step + 1), input_requested(step, run=step + 1), answer(step)]
    task = fold(created(), *asked, started(5))
    assert (task.run, task.failures, task.steps, task.status) == (5, 0, 4, "running")


# Keys, blobs, a newer release's facts


def test_the_last_64_keys_are_remembered() -> None:
    keys = [f"k{number}" for number in range(MAX_KEYS + 6)]
    task = fold(created(), *(With(fact=message(), key=key) for key in keys))
    assert task.keys == tuple(keys[6:])
    assert MAX_KEYS == 64


def test_a_fact_without_a_key_keeps_those_that_came_before() -> None:
    assert fold(With(fact=created(), key="k1"), started()).keys == ("k1",)


def test_a_field_in_a_blob_is_known_by_its_reference() -> None:
    asked = BlobReference(name="r1", sha256="0" * 64, bytes=MAX_INLINE, fields=("input", "metadata"))
    done = BlobReference(name="r2", sha256="1" * 64, bytes=MAX_INLINE, fields=("result",))
    task = fold(With(fact=created(), blob=asked), started(), With(fact=completed(result=None), blob=done))
    assert task.blobs == {"input": asked, "metadata": asked, "result": done}
    assert (task.input, task.result) == (None, None)


def test_a_steps_blob_is_no_part_of_the_task() -> None:
    output = BlobReference(name="r1", sha256="0" * 64, bytes=MAX_INLINE, fields=("output",))
    assert fold(created(), started(), With(fact=tool_used(), blob=output)).blobs == {}


def test_an_unknown_fact_is_counted_named_and_changes_nothing_else() -> None:
    before = fold(created(), started())
    after = fold(created(), started(), UnknownFact(tag="task.forked", fields={"into": 2}))
    assert (after.unknown, after.version, after.status, after.worker) == ("task.forked", 3, "running", "w1")
    assert after.sha256 != before.sha256


EVERY_FACT: list[TaskFact] = [
    *(fact for life in LIVES.values() for fact in life),
    step_started(),
    step_finished(),
    tool_used(),
    plan_proposed(),
    plan_proposed(needs_approval=True),
    answer(),
    message(),
    review_decided(),
    resumed(),
    RunFailed(run=9, error=Problem(code="", message="")),
]


@pytest.mark.parametrize("status", LIVES)
def test_history_is_not_up_for_debate(status: Status) -> None:
    """Any fact after any other folds, even one that no `decide` would give."""
    records = history(*LIVES[status])
    for fact in EVERY_FACT:
        later = record_after(records[-1] if records else None, fact)
        assert evolve(fold(*LIVES[status]), later).version == len(records) + 1


def test_a_task_before_its_first_fact_is_absent() -> None:
    assert (INITIAL.status, INITIAL.version, INITIAL.ended, INITIAL.partial_text) == ("absent", 0, False, "")
