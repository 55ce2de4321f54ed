"""The text of a task as it comes: what is kept, what is dropped, how much of it a view holds."""

import pytest

from eventstore.events import TaskFact
from projections.task import MAX_PARTIAL_TEXT
from tests.given import (
    cancelled,
    completed,
    created,
    fold,
    input_requested,
    partial,
    paused,
    plan_proposed,
    review_requested,
    run_failed,
    started,
    step_finished,
    tool_used,
)

SAYING = (created(), started(), partial("Hello"), partial(" you", offset=5))


def test_text_is_told_as_it_comes() -> None:
    assert fold(*SAYING).partial_text == "Hello you"
    assert fold(*SAYING).text_length == 9


def test_the_text_of_a_finished_step_is_kept_and_the_next_follows_it() -> None:
    task = fold(*SAYING, step_finished(0), partial(". Bye", step=1))
    assert task.partial_text == "Hello you. Bye"
    assert fold(*SAYING, step_finished(0), started(2)).partial_text == "Hello you"


def test_a_finished_steps_message_is_its_text_where_none_came_before() -> None:
    assert fold(created(), started(), step_finished(0, message="Hello")).partial_text == "Hello"
    assert fold(*SAYING, step_finished(0, message="Hello you")).partial_text == "Hello you"


def test_a_tool_that_says_nothing_leaves_the_text_alone() -> None:
    assert fold(*SAYING, step_finished(0), tool_used(1)).partial_text == "Hello you"


def test_a_new_run_drops_the_text_of_the_unfinished_step_alone() -> None:
    life = (*SAYING, step_finished(0), partial("Half a sent", step=1), started(2, lost=True))
    task = fold(*life)
    assert (task.partial_text, task.text_length) == ("Hello you", 0)
    again = fold(*life, partial("Half a sentence", step=1, run=2))
    assert again.partial_text == "Hello youHalf a sentence"


@pytest.mark.parametrize(
    "set_down", [input_requested(), review_requested(), plan_proposed(), paused(), run_failed()], ids=repr
)
def test_an_unfinished_steps_text_is_void_once_nobody_says_it(set_down: TaskFact) -> None:
    assert fold(*SAYING, set_down).partial_text == ""


@pytest.mark.parametrize("end", [completed(), cancelled()])
def test_what_was_said_before_the_end_stays(end: TaskFact) -> None:
    assert fold(*SAYING, end).partial_text == "Hello you"


def test_of_a_long_text_the_tail_is_kept() -> None:
    half = "a" * (MAX_PARTIAL_TEXT // 2)
    long = fold(
        created(), started(), partial(half), partial(half, offset=len(half)), partial("end", offset=2 * len(half))
    )
    assert len(long.partial_text) == MAX_PARTIAL_TEXT
    assert long.partial_text.endswith("aend")
    assert long.text_length == MAX_PARTIAL_TEXT + 3


def test_the_tail_runs_over_the_end_of_a_step() -> None:
    text = "a" * MAX_PARTIAL_TEXT
    task = fold(created(), started(), partial(text), step_finished(0), partial("end", step=1))
    assert len(task.partial_text) == MAX_PARTIAL_TEXT
    assert task.partial_text.endswith("aend")
    assert len(fold(created(), started(), step_finished(0, message=2 * text)).text) == MAX_PARTIAL_TEXT
