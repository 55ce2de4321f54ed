"""The recorded steps of a task: what a new run feeds its agent instead of running them again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from eventstore.events import Json, Problem, StepFinished, StepStarted, TaskFact, ToolUsed, UnknownFact
from projections.steps import Answered, Steps
from tests.given import (
    LIVES,
    answer,
    cancelled,
    created,
    input_requested,
    message,
    partial,
    pause_requested,
    paused,
    plan_proposed,
    resumed,
    review_decided,
    review_requested,
    run_failed,
    started,
    step_finished,
    step_started,
    tool_used,
)


def steps_of(*facts: TaskFact | UnknownFact) -> Steps:
    steps = Steps()
    for fact in facts:
        steps.take_in(fact)
    return steps


def noted(step: int, output: Json) -> StepFinished:
    return StepFinished(run=1, step=step, kind="inbox", output=output)


def test_a_finished_step_is_known_by_what_it_was_answered() -> None:
    finished = StepFinished(run=1, step=0, kind="clock", output="noon", input_sha256="d")
    assert steps_of(created(), started(), finished).answered == {
        0: Answered(kind="clock", sha256="d", answer="noon"),
    }


def test_a_used_tool_is_known_by_its_name_and_output() -> None:
    used = ToolUsed(run=1, step=0, tool="search", output=[1], input_sha256="d")
    assert steps_of(step_started(0), used).answered == {
        0: Answered(kind="tool", name="search", sha256="d", answer=[1]),
    }


def test_an_effect_keeps_its_name() -> None:
    finished = StepFinished(run=1, step=0, kind="effect", name="crash")
    assert steps_of(finished).answered[0].name == "crash"


def test_an_error_is_an_answer_too() -> None:
    refused = replace(tool_used(0), error=Problem(code="no", message="not there"))
    assert steps_of(refused).answered[0].error == Problem(code="no", message="not there")


def test_a_started_step_is_not_answered_but_known_to_have_begun() -> None:
    steps = steps_of(started(), step_started(0), tool_used(0), step_started(1), run_failed())
    assert (steps.started, set(steps.answered)) == ({0, 1}, {0})


def test_a_question_is_answered_by_what_the_user_says_to_it() -> None:
    asked = replace(input_requested(0), input_sha256="d")
    assert steps_of(asked).answered == {}
    assert steps_of(asked, answer(0, text="blue")).answered == {0: Answered(kind="ask", sha256="d", answer="blue")}


@pytest.mark.parametrize("approved", [True, False])
def test_a_review_is_answered_by_its_decision(approved: bool) -> None:
    asked = replace(review_requested(0), input_sha256="d")
    decided = replace(review_decided(0, approved=approved), feedback="hm")
    verdict: Json = {"approved": approved, "feedback": "hm"}
    assert steps_of(asked, decided).answered == {0: Answered(kind="review", sha256="d", answer=verdict)}


def test_a_plan_that_nobody_need_approve_is_approved() -> None:
    assert steps_of(plan_proposed(0)).answered == {0: Answered(kind="plan", answer={"approved": True})}


def test_a_plan_that_needs_approval_is_answered_by_the_decision() -> None:
    proposed = plan_proposed(0, needs_approval=True)
    assert steps_of(proposed).answered == {}
    verdict: Json = {"approved": False, "feedback": None}
    decided = steps_of(proposed, review_decided(0, approved=False)).answered
    assert decided == {0: Answered(kind="plan", answer=verdict)}


def test_an_answer_given_during_a_pause_counts() -> None:
    facts = input_requested(0), paused(), answer(0, text="blue", runnable=False), resumed()
    assert steps_of(*facts).answered[0].answer == "blue"


def test_an_answer_to_what_was_never_asked_is_none() -> None:
    assert steps_of(answer(3), review_decided(4)).answered == {}


def test_what_is_said_unasked_goes_to_the_inbox_and_is_read_once() -> None:
    steps = steps_of(message("one"), message("two"), noted(0, ["one", "two"]), message("three"))
    assert steps.inbox[steps.inbox_read :] == ["three"]


def test_answers_do_not_go_to_the_inbox() -> None:
    assert steps_of(input_requested(0), answer(0)).inbox == []


def test_what_is_no_step_changes_nothing() -> None:
    unknown = UnknownFact(tag="task.teleported", fields={})
    facts = (
        created(),
        started(),
        partial("a"),
        pause_requested(),
        paused(),
        resumed(),
        run_failed(),
        cancelled(),
        unknown,
    )
    steps = steps_of(*facts)
    assert (steps.answered, steps.started, steps.inbox, steps.inbox_read) == ({}, set(), [], 0)


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_any_life_can_be_taken_in(life: tuple[TaskFact, ...]) -> None:
    steps = steps_of(*life)
    assert steps.answered == {}


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 30))
def test_steps_folded_in_two_parts_are_the_same_as_in_one(finishes: list[bool], cut: int) -> None:
    facts: list[TaskFact] = []
    for number, finished in enumerate(finishes):
        facts.append(step_started(number))
        facts.append(tool_used(number, output=number) if finished else message(str(number)))
    whole, parted = steps_of(*facts), steps_of(*facts[:cut])
    for fact in facts[cut:]:
        parted.take_in(fact)
    assert (whole.answered, whole.started, whole.inbox) == (parted.answered, parted.started, parted.inbox)
    assert set(whole.answered) == {number for number, finished in enumerate(finishes) if finished}
    assert whole.started == {fact.step for fact in facts if isinstance(fact, StepStarted)}


def test_text_is_answered_with_nothing() -> None:
    assert steps_of(step_finished(0, message="Hello.")).answered[0].answer is None
