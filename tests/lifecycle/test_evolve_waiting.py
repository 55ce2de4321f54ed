"""A task that waits for a person or is paused, folded from its facts."""

import pytest

from eventstore.events import TaskFact
from projections.task import ENDED, Status
from tests.given import (
    LIVES,
    PLAN,
    answer,
    created,
    fold,
    input_requested,
    message,
    pause_requested,
    paused,
    plan_proposed,
    resumed,
    review_decided,
    review_requested,
    run_failed,
    started,
    step_finished,
)

# Questions, reviews, plans, the inbox


def test_a_question_waits_for_its_answer() -> None:
    life = (created(), started(), step_finished(0), input_requested(1))
    asking = fold(*life)
    assert (asking.question, asking.asked_step, asking.steps) == ("Which one?", 1, 1)
    answered = fold(*life, answer(1))
    assert (answered.status, answered.question, answered.asked_step) == ("pending", None, None)
    assert (answered.runnable, answered.steps) == (True, 2)


@pytest.mark.parametrize("status", [status for status in LIVES if status not in ENDED and status != "absent"])
def test_a_message_goes_to_the_inbox_and_changes_nothing_else(status: Status) -> None:
    before, after = fold(*LIVES[status]), fold(*LIVES[status], message(), message())
    assert after.inbox == 2
    assert (after.status, after.runnable, after.steps, after.question, after.review) == (
        before.status,
        before.runnable,
        before.steps,
        before.question,
        before.review,
    )


def test_a_review_waits_for_its_decision() -> None:
    life = (created(), started(), review_requested(0))
    assert (fold(*life).review, fold(*life).asked_step) == ("Send the mail?", 0)
    decided = fold(*life, review_decided(0, approved=False))
    assert (decided.status, decided.review, decided.steps, decided.runnable) == ("pending", None, 1, True)


def test_a_plan_that_needs_no_approval_is_a_finished_step() -> None:
    task = fold(created(), started(), plan_proposed(0))
    assert (task.status, task.plan, task.steps, task.plan_approved) == ("running", PLAN, 1, False)


def test_a_plan_that_needs_approval_waits_for_it() -> None:
    life = (created(approval_mode="confirm"), started(), plan_proposed(0, needs_approval=True))
    waiting = fold(*life)
    assert (waiting.status, waiting.plan, waiting.review, waiting.steps) == ("awaiting_review", PLAN, "plan", 0)
    assert fold(*life, review_decided(0)).plan_approved
    assert not fold(*life, review_decided(0, approved=False)).plan_approved


def test_approving_something_else_approves_no_plan() -> None:
    task = fold(created(), started(), plan_proposed(0), review_requested(1, subject="plan"), review_decided(1))
    assert not task.plan_approved


def test_a_refused_plan_is_not_approved_because_an_earlier_one_was() -> None:
    life = (
        created(approval_mode="confirm"),
        started(),
        plan_proposed(0, needs_approval=True),
        review_decided(0),
        started(2),
        plan_proposed(1, run=2, needs_approval=True),
    )
    assert not fold(*life).plan_approved
    assert not fold(*life, review_decided(1, approved=False)).plan_approved
    assert fold(*life, review_decided(1)).plan_approved


def test_an_approved_plan_stays_approved_when_something_else_is_refused() -> None:
    task = fold(
        created(approval_mode="confirm"),
        started(),
        plan_proposed(0, needs_approval=True),
        review_decided(0),
        started(2),
        review_requested(1, run=2),
        review_decided(1, approved=False),
    )
    assert task.plan_approved


# Pausing


@pytest.mark.parametrize(
    ("status", "resumed_status"),
    [
        ("pending", "pending"),
        ("queued", "pending"),
        ("running", "pending"),
        ("waiting_for_input", "waiting_for_input"),
        ("awaiting_review", "awaiting_review"),
    ],
)
def test_a_task_goes_on_after_a_pause_where_it_was(status: Status, resumed_status: Status) -> None:
    before = fold(*LIVES[status])
    held = fold(*LIVES[status], paused())
    assert (held.status, held.runnable, held.worker) == ("paused", False, None)
    runnable = resumed_status == "pending"
    after = fold(*LIVES[status], paused(), resumed(runnable=runnable))
    assert (after.status, after.runnable) == (resumed_status, runnable)
    assert (after.question, after.review, after.asked_step) == (before.question, before.review, before.asked_step)


def test_a_wish_for_a_pause_ends_with_the_pause_or_is_taken_back() -> None:
    life = (created(), started(), pause_requested())
    assert (fold(*life).status, fold(*life).pause_requested) == ("running", True)
    assert not fold(*life, paused()).pause_requested
    taken_back = fold(*life, resumed(runnable=False))
    assert (taken_back.status, taken_back.pause_requested, taken_back.worker) == ("running", False, "w1")


def test_a_wish_for_a_pause_outlives_its_run_and_a_task_that_need_not_pause_stays_runnable() -> None:
    life = (created(), started(), pause_requested(), run_failed())
    assert fold(*life).pause_requested
    taken_back = fold(*life, resumed(runnable=True))
    assert (taken_back.status, taken_back.runnable, taken_back.pause_requested) == ("pending", True, False)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [(input_requested(), answer(runnable=False)), (review_requested(), review_decided(runnable=False))],
)
def test_a_task_answered_while_it_is_paused_stays_paused_and_then_runs(asked: TaskFact, answered: TaskFact) -> None:
    life = (created(), started(), asked, paused(), answered)
    held = fold(*life)
    assert (held.status, held.runnable, held.steps) == ("paused", False, 1)
    assert (held.question, held.review) == (None, None)
    after = fold(*life, resumed(runnable=True))
    assert (after.status, after.runnable) == ("pending", True)
