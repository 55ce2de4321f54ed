"""What may happen to a task that waits for a person, is paused, or has ended."""

import pytest
from msgspec.structs import replace

from app.commands import (
    CancelTask,
    Command,
    DecideReview,
    PauseTask,
    QueueTask,
    ReceiveInput,
    RequestInput,
    RequestPause,
    ResumeTask,
    TimeOutTask,
    WorkerCommand,
)
from app.decide import Rejected, decide
from eventstore.events import (
    InputReceived,
    InputRequested,
    PlanProposed,
    ReviewDecided,
    ReviewRequested,
    TaskFact,
    TaskPaused,
    TaskResumed,
)
from projections.task import ENDED, Status
from tests.given import (
    BEGIN,
    DEADLINE,
    LIVES,
    answer,
    created,
    fold,
    given,
    input_requested,
    pause_requested,
    paused,
    plan_proposed,
    resumed,
    review_decided,
    review_requested,
    started,
    step_finished,
)
from tests.lifecycle.commands import (
    client_commands,
    complete,
    every_command,
    fail,
    fail_run,
    name_of,
    propose_plan,
    request_input,
    request_review,
    start_run,
    worker_commands,
)

ASKING: list[Status] = ["waiting_for_input", "awaiting_review"]
HELD: list[Status] = ["waiting_for_input", "awaiting_review", "paused"]
PAUSED_WHILE_ASKING = (created(), started(), input_requested(), paused())
PAUSED_WHILE_IN_REVIEW = (created(), started(), review_requested(), paused())
TO_PAUSE = (created(), started(), pause_requested())


# Waiting for a person


@pytest.mark.parametrize("command", [propose_plan(), request_input(), request_review()], ids=name_of)
def test_what_is_asked_carries_the_digest_by_which_a_replay_knows_it(command: WorkerCommand) -> None:
    decision = decide(replace(command, input_sha256="a1"), fold(created(), started()))
    assert isinstance(decision, PlanProposed | InputRequested | ReviewRequested)
    assert decision.input_sha256 == "a1"


@pytest.mark.parametrize("status", HELD)
@pytest.mark.parametrize("command", [QueueTask(limit=1), start_run(1), start_run(2)], ids=name_of)
def test_a_task_that_waits_for_a_person_is_not_run(status: Status, command: Command) -> None:
    given(*LIVES[status]).when(command).then_rejected("not_runnable")


@pytest.mark.parametrize("status", ASKING)
def test_a_task_that_waits_for_a_person_can_be_paused(status: Status) -> None:
    given(*LIVES[status]).when(RequestPause(reason="lunch")).then(TaskPaused(reason="lunch"))


@pytest.mark.parametrize("asking", [input_requested(), review_requested()])
def test_a_wish_for_a_pause_that_outlived_its_run_can_be_taken_back(asking: TaskFact) -> None:
    given(*TO_PAUSE, asking).when(ResumeTask()).then(TaskResumed(runnable=False))


def test_an_answer_makes_the_task_runnable() -> None:
    given(created(), started(), step_finished(0), input_requested(1)).when(ReceiveInput(text="The blue one")).then(
        answer(1, runnable=True)
    )


@pytest.mark.parametrize("approved", [True, False])
def test_a_review_makes_the_task_runnable_whatever_it_says(approved: bool) -> None:
    given(created(), started(), review_requested()).when(DecideReview(approved=approved, feedback="hm")).then(
        ReviewDecided(step=0, approved=approved, feedback="hm", runnable=True)
    )
    given(created(approval_mode="confirm"), started(), plan_proposed(needs_approval=True)).when(
        DecideReview(approved=approved)
    ).then(ReviewDecided(step=0, approved=approved, runnable=True, of_plan=True))


def test_a_review_of_one_step_decides_nothing_about_another() -> None:
    asked = (created(), started(), review_requested())
    given(*asked).when(DecideReview(approved=True, step=0)).then(review_decided(0))
    given(*asked).when(DecideReview(approved=True, step=1)).then_rejected("not_waiting")


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        (input_requested(), request_input()),
        (review_requested(), request_review()),
        (plan_proposed(needs_approval=True), propose_plan()),
    ],
)
def test_a_question_repeated_by_its_worker_changes_nothing(asked: TaskFact, command: WorkerCommand) -> None:
    given(created(), started(), asked).when(command).then_nothing()


@pytest.mark.parametrize("command", [request_input(1), request_input(0, run=2), request_input(0, run=0)])
def test_another_question_has_to_wait(command: RequestInput) -> None:
    given(created(), started(), input_requested()).when(command).then_rejected("stale_run")


# Paused


def test_a_paused_task_is_paused_already() -> None:
    given(*LIVES["paused"]).when(RequestPause()).then_nothing()
    given(*LIVES["paused"]).when(PauseTask(run=1)).then_nothing()
    given(*LIVES["paused"]).when(PauseTask(run=2)).then_rejected("stale_run")


@pytest.mark.parametrize("command", [c for c in worker_commands() if not isinstance(c, PauseTask)], ids=name_of)
def test_the_run_that_was_paused_writes_nothing_more(command: WorkerCommand) -> None:
    given(*LIVES["paused"]).when(command).then_rejected("stale_run")


@pytest.mark.parametrize(
    ("life", "runnable"),
    [
        (LIVES["paused"], True),
        ((created(), paused()), True),
        (PAUSED_WHILE_ASKING, False),
        (PAUSED_WHILE_IN_REVIEW, False),
        ((*PAUSED_WHILE_ASKING, answer(runnable=False)), True),
        ((*PAUSED_WHILE_IN_REVIEW, review_decided(runnable=False)), True),
    ],
)
def test_a_resumed_task_is_runnable_unless_a_person_is_still_asked(life: tuple[TaskFact, ...], runnable: bool) -> None:
    given(*life).when(ResumeTask()).then(resumed(runnable=runnable))


def test_an_answer_to_a_paused_task_does_not_make_it_runnable() -> None:
    given(*PAUSED_WHILE_ASKING).when(ReceiveInput(text="The blue one")).then(answer(0, runnable=False))
    given(*PAUSED_WHILE_IN_REVIEW).when(DecideReview(approved=True)).then(review_decided(0, runnable=False))


def test_a_message_to_a_task_paused_in_review_is_no_answer() -> None:
    given(*PAUSED_WHILE_IN_REVIEW).when(ReceiveInput(text="Hurry up")).then(InputReceived(text="Hurry up"))


# After the end


@pytest.mark.parametrize("status", sorted(ENDED))
@pytest.mark.parametrize("command", [*every_command()[2:], *worker_commands(run=2)], ids=name_of)
def test_nothing_follows_the_end(status: Status, command: Command) -> None:
    decision = decide(command, fold(*LIVES[status]))
    assert decision is None or (isinstance(decision, Rejected) and decision.reason == "ended")


@pytest.mark.parametrize(
    ("status", "command"),
    [
        ("completed", complete()),
        ("failed", fail()),
        ("cancelled", CancelTask(by="bob")),
        ("timed_out", TimeOutTask(deadline=DEADLINE)),
    ],
)
def test_an_end_that_is_wished_for_again_is_true_already(status: Status, command: Command) -> None:
    given(*LIVES[status]).when(command).then_nothing()


@pytest.mark.parametrize(
    ("status", "command"),
    [
        ("completed", complete(result="another")),
        ("completed", complete(2)),
        ("completed", fail()),
        ("failed", fail(code="another")),
        ("failed", complete()),
        ("failed", fail_run()),
        ("timed_out", TimeOutTask(deadline=BEGIN)),
        ("cancelled", TimeOutTask(deadline=DEADLINE)),
        ("completed", CancelTask(by="bob")),
        ("timed_out", CancelTask(by="bob")),
        *[("completed", command) for command in client_commands()],
    ],
)
def test_another_end_than_the_first_is_refused(status: Status, command: Command) -> None:
    given(*LIVES[status]).when(command).then_rejected("ended")
