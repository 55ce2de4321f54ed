"""What the run in hand may write, and who may take the task over."""

import pytest

from app.commands import FailRun, FinishStep, PauseTask, QueueTask, RequestPause, ResumeTask, StartStep, WorkerCommand
from eventstore.events import (
    PauseRequested,
    RunFailed,
    StepFinished,
    StepStarted,
    TaskCompleted,
    TaskFact,
    TaskFailed,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    ToolUsed,
    Usage,
)
from tests.given import (
    DEADLINE,
    LIVES,
    created,
    fold,
    given,
    input_requested,
    partial,
    pause_requested,
    plan_proposed,
    review_requested,
    run_failed,
    started,
    step_finished,
    step_started,
    tool_used,
)
from tests.lifecycle.commands import (
    BROKEN,
    complete,
    fail,
    fail_run,
    finish_step,
    name_of,
    produce,
    propose_plan,
    request_input,
    request_review,
    start_run,
    start_step,
    worker_commands,
)

TO_PAUSE = (created(), started(), pause_requested())


# Running


def test_a_running_task_is_not_queued() -> None:
    given(created(), started()).when(QueueTask(limit=1)).then_rejected("not_runnable")


def test_a_start_repeated_by_the_worker_that_runs_it_changes_nothing() -> None:
    given(created(), started()).when(start_run(1)).then_nothing()


def test_a_second_worker_does_not_get_the_same_run() -> None:
    given(created(), started()).when(start_run(1, worker="w2")).then_rejected("stale_run")


@pytest.mark.parametrize("run", [0, 3])
def test_a_running_task_is_taken_over_by_the_next_run_only(run: int) -> None:
    given(created(), started()).when(start_run(run, worker="w2")).then_rejected("stale_run")


@pytest.mark.parametrize("worker", ["w1", "w2"])
def test_a_takeover_says_that_the_run_before_was_lost(worker: str) -> None:
    given(created(), started()).when(start_run(2, worker=worker)).then(TaskStarted(run=2, worker=worker, lost=True))


def test_the_last_run_that_a_task_may_lose_fails_it() -> None:
    given(created(max_failures=2), started()).when(start_run(2)).then(started(2, lost=True))
    given(created(max_failures=2), started(), run_failed(), started(2)).when(start_run(3)).then(
        TaskFailed(code="too_many_failures", message="run 2 was lost; failure 2 of 2")
    )


def test_a_stale_takeover_fails_nothing() -> None:
    given(created(max_failures=1), started()).when(start_run(5)).then_rejected("stale_run")


def test_a_running_task_is_asked_to_pause_once() -> None:
    given(created(), started()).when(RequestPause(reason="lunch")).then(PauseRequested(reason="lunch"))
    given(*TO_PAUSE).when(RequestPause()).then_nothing()


def test_a_wish_for_a_pause_can_be_taken_back() -> None:
    given(*TO_PAUSE).when(ResumeTask()).then(TaskResumed(runnable=False))


@pytest.mark.parametrize("run", [1, 3])
@pytest.mark.parametrize("command_at", range(len(worker_commands())))
def test_only_the_run_in_hand_may_write(run: int, command_at: int) -> None:
    command = worker_commands(run=run)[command_at]
    given(created(), started(), run_failed(), started(2)).when(command).then_rejected("stale_run")


# The run in hand: steps


def test_a_step_starts() -> None:
    command = StartStep(run=1, step=0, kind="effect", name="mail", input={"to": "bob"}, input_sha256="a1")
    given(created(), started()).when(command).then(
        StepStarted(run=1, step=0, kind="effect", name="mail", input={"to": "bob"}, input_sha256="a1")
    )


def test_a_step_in_hand_or_finished_does_not_start_again() -> None:
    given(created(), started(), step_started(0)).when(start_step(0)).then_nothing()
    given(created(), started(), tool_used(0)).when(start_step(0)).then_nothing()


def test_a_step_in_hand_when_its_worker_died_starts_again() -> None:
    given(created(), started(), step_started(0), started(2, lost=True)).when(start_step(0, run=2)).then(
        step_started(0, run=2)
    )


@pytest.mark.parametrize(
    "command",
    [
        start_step(2),
        finish_step(2),
        produce("x", step=2),
        propose_plan(2),
        request_input(2),
        request_review(2),
    ],
    ids=name_of,
)
def test_steps_come_in_order(command: WorkerCommand) -> None:
    given(created(), started(), tool_used(0)).when(command).then_rejected("out_of_order")


@pytest.mark.parametrize("command", [start_step(1), propose_plan(0), request_input(0), request_review(0)], ids=name_of)
def test_a_step_in_hand_is_finished_before_anything_else_begins(command: WorkerCommand) -> None:
    given(created(), started(), step_started(0)).when(command).then_rejected("out_of_order")


@pytest.mark.parametrize(
    "command", [finish_step(0), produce("x"), propose_plan(0), request_input(0), request_review(0)], ids=name_of
)
def test_a_finished_step_says_nothing_more(command: WorkerCommand) -> None:
    given(created(), started(), step_finished(0)).when(command).then_nothing()


def test_a_finished_tool_is_a_tool_used() -> None:
    command = FinishStep(
        run=1,
        step=0,
        kind="tool",
        name="search",
        output=[1],
        error=BROKEN,
        took=0.5,
        input_sha256="a1",
        message="found",
        usage=Usage(cost=0.1),
    )
    given(created(), started(), step_started(0)).when(command).then(
        ToolUsed(
            run=1,
            step=0,
            tool="search",
            output=[1],
            error=BROKEN,
            took=0.5,
            input_sha256="a1",
            message="found",
            usage=Usage(cost=0.1),
        )
    )


def test_any_other_finished_step_is_a_step_finished() -> None:
    command = FinishStep(
        run=1,
        step=0,
        kind="effect",
        name="mail",
        output=[1],
        error=BROKEN,
        took=0.5,
        input_sha256="a1",
        message="sent",
        usage=Usage(cost=0.1),
    )
    given(created(), started(), step_started(0)).when(command).then(
        StepFinished(
            run=1,
            step=0,
            kind="effect",
            name="mail",
            output=[1],
            error=BROKEN,
            took=0.5,
            input_sha256="a1",
            message="sent",
            usage=Usage(cost=0.1),
        )
    )


def test_a_step_that_only_reads_or_talks_need_not_be_started() -> None:
    given(created(), started()).when(finish_step(0, kind="clock")).then(step_finished(0, kind="clock"))


# The run in hand: text


def test_text_goes_on_where_it_ended() -> None:
    given(created(), started()).when(produce("Hello")).then(partial("Hello"))
    given(created(), started(), partial("Hello")).when(produce(" you", offset=5)).then(partial(" you", offset=5))


@pytest.mark.parametrize(("text", "offset"), [("Hello", 0), ("lo", 3), ("", 5), ("", 0)])
def test_text_that_is_there_already_is_not_said_twice(text: str, offset: int) -> None:
    given(created(), started(), partial("Hello")).when(produce(text, offset=offset)).then_nothing()


@pytest.mark.parametrize(("text", "offset"), [("x", 6), ("lo you", 3), ("Hello you", -1)])
def test_text_with_a_hole_or_an_overlap_is_refused(text: str, offset: int) -> None:
    given(created(), started(), partial("Hell")).when(produce(text, offset=offset)).then_rejected("out_of_order")


def test_a_new_run_says_an_unfinished_steps_text_from_its_beginning() -> None:
    taken_over = given(created(), started(), partial("Hello"), started(2, lost=True))
    taken_over.when(produce("Hello", run=2)).then(partial("Hello", run=2))
    taken_over.when(produce("!", offset=5, run=2)).then_rejected("out_of_order")


# The run in hand: asking


def test_a_plan_needs_approval_where_the_client_wants_to_confirm() -> None:
    given(created(), started()).when(propose_plan()).then(plan_proposed(needs_approval=False))
    given(created(approval_mode="dry_run"), started()).when(propose_plan()).then(plan_proposed(needs_approval=False))
    given(created(approval_mode="confirm"), started()).when(propose_plan()).then(plan_proposed(needs_approval=True))


def test_an_agent_asks_the_user_or_for_a_review() -> None:
    given(created(), started()).when(request_input()).then(input_requested())
    given(created(), started()).when(request_review()).then(review_requested())


@pytest.mark.parametrize(
    "command", [start_step(), propose_plan(), request_input(), request_review(), PauseTask(run=1)], ids=name_of
)
def test_where_a_pause_is_wished_for_it_comes_before_the_next_step(command: WorkerCommand) -> None:
    given(*TO_PAUSE).when(command).then(TaskPaused())


def test_the_step_in_hand_ends_before_a_pause() -> None:
    task = given(created(), started(), step_started(0), pause_requested())
    task.when(produce("x")).then(partial("x"))
    task.when(finish_step(0, kind="tool", name="search")).then(tool_used(0))


def test_a_worker_does_not_pause_what_nobody_wants_paused() -> None:
    given(created(), started()).when(PauseTask(run=1)).then_rejected("not_waiting")


# The run in hand: its end


def test_a_run_that_fails_may_be_tried_again() -> None:
    given(created(), started()).when(fail_run(retry_at=DEADLINE)).then(run_failed(retry_at=DEADLINE))


def test_the_last_failure_allowed_fails_the_task() -> None:
    lost = (created(max_failures=3), started(), started(2, lost=True), started(3, lost=True))
    given(*lost[:2], started(2, lost=True)).when(fail_run(2)).then(run_failed(2))
    given(*lost).when(fail_run(3)).then(TaskFailed(code="broken", message="it broke (failure 3 of 3)"))
    given(created(max_failures=1), started()).when(fail_run()).then(
        TaskFailed(code="broken", message="it broke (failure 1 of 1)")
    )


@pytest.mark.parametrize("life", [LIVES["running"], TO_PAUSE, (created(), started(), step_started(0))])
def test_the_run_in_hand_ends_the_task(life: tuple[TaskFact, ...]) -> None:
    given(*life).when(complete(result="42")).then(TaskCompleted(run=1, result="42"))
    given(*life).when(fail(code="bad_input")).then(TaskFailed(code="bad_input", message="it broke"))


def test_a_run_that_is_given_back_is_no_failure_however_many_there_were() -> None:
    back = FailRun(run=1, error=BROKEN, counts=False)
    decided = RunFailed(run=1, error=BROKEN, counts=False)
    given(created(max_failures=1), started()).when(back).then(decided)
    task = fold(created(max_failures=1), started(), decided)
    assert (task.status, task.failures, task.runnable, task.last_error) == ("pending", 0, True, None)
