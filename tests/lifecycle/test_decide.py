"""What may happen next to a task: its creation, its way to a run, its keys."""

from datetime import timedelta

import pytest

from app.commands import (
    CancelTask,
    Command,
    CreateTask,
    DecideReview,
    QueueTask,
    ReceiveInput,
    RequestPause,
    ResumeTask,
    TimeOutTask,
    WorkerCommand,
)
from app.decide import Rejected, decide
from eventstore.events import (
    FileReference,
    InputReceived,
    TaskCancelled,
    TaskCreated,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    UnknownFact,
)
from projections.task import ENDED, Status
from tests.given import (
    DEADLINE,
    LIVES,
    With,
    cancelled,
    completed,
    created,
    fold,
    given,
    pause_requested,
    queued,
    run_failed,
    started,
)
from tests.lifecycle.commands import (
    create,
    every_command,
    name_of,
    start_run,
    worker_commands,
)

LIVING: list[Status] = [status for status in LIVES if status not in ENDED and status != "absent"]
ASKING: list[Status] = ["waiting_for_input", "awaiting_review"]
WAITING_FOR_A_RUN: list[Status] = ["pending", "queued"]
TO_PAUSE = (created(), started(), pause_requested())


# Creating


def test_a_task_is_created_as_it_was_asked_for() -> None:
    files = (FileReference(name="a.txt", blob="b1", sha256="0" * 64, bytes=3),)
    command = CreateTask(
        agent="researcher",
        fingerprint="f9",
        input={"q": 1},
        title="A title",
        session_id="s1",
        mode="fast",
        approval_mode="confirm",
        deadline=DEADLINE,
        max_failures=2,
        dialect="niyra",
        metadata={"a": [1]},
        files=files,
    )
    given().when(command).then(
        TaskCreated(
            agent="researcher",
            fingerprint="f9",
            input={"q": 1},
            title="A title",
            session_id="s1",
            mode="fast",
            approval_mode="confirm",
            deadline=DEADLINE,
            max_failures=2,
            dialect="niyra",
            metadata={"a": [1]},
            files=files,
            runnable=True,
        )
    )


@pytest.mark.parametrize("command", [*every_command()[2:]], ids=name_of)
def test_nothing_but_its_creation_happens_to_a_task_that_does_not_exist(command: Command) -> None:
    given().when(command).then_rejected("not_found")


@pytest.mark.parametrize("status", [*LIVING, *sorted(ENDED)])
def test_a_creation_repeated_by_key_meets_its_own_task(status: Status) -> None:
    first, *later = LIVES[status]
    task = given(With(fact=first, key="k1"), *later)
    task.when(create(key="k1")).then_nothing()
    task.when(create(key="k1", fingerprint="f2")).then_rejected("key_reused")
    task.when(create()).then_rejected("already_exists")


# Waiting for a run


def test_a_pending_task_is_queued_once() -> None:
    given(created()).when(QueueTask(limit=32)).then(queued(32))
    given(created(), queued()).when(QueueTask(limit=32)).then_nothing()


@pytest.mark.parametrize("status", WAITING_FOR_A_RUN)
def test_a_worker_starts_the_next_run(status: Status) -> None:
    given(*LIVES[status]).when(start_run(1)).then(TaskStarted(run=1, worker="w1", lost=False))


@pytest.mark.parametrize("run", [0, 1, 3])
def test_a_run_that_is_not_the_next_one_does_not_start(run: int) -> None:
    given(created(), started(), run_failed()).when(start_run(run)).then_rejected("stale_run")


def test_a_pause_wished_for_in_a_run_that_failed_comes_before_the_next_run() -> None:
    task = given(*TO_PAUSE, run_failed())
    task.when(start_run(2)).then(TaskPaused())
    task.when(RequestPause()).then(TaskPaused())
    task.when(ResumeTask()).then(TaskResumed(runnable=True))


def test_a_stale_worker_does_not_even_pause_a_task() -> None:
    given(*TO_PAUSE, run_failed()).when(start_run(1)).then_rejected("stale_run")


@pytest.mark.parametrize("status", WAITING_FOR_A_RUN)
def test_a_task_that_nobody_runs_is_paused_at_once(status: Status) -> None:
    given(*LIVES[status]).when(RequestPause(reason="lunch")).then(TaskPaused(reason="lunch"))


@pytest.mark.parametrize("status", [*WAITING_FOR_A_RUN, *ASKING, "running"])
def test_resuming_what_is_not_paused_changes_nothing(status: Status) -> None:
    given(*LIVES[status]).when(ResumeTask()).then_nothing()


@pytest.mark.parametrize("status", [*WAITING_FOR_A_RUN, "running", "awaiting_review", "paused"])
def test_what_the_user_says_unasked_goes_to_the_inbox(status: Status) -> None:
    given(*LIVES[status]).when(ReceiveInput(text="Hurry up")).then(InputReceived(text="Hurry up"))


@pytest.mark.parametrize("status", [*WAITING_FOR_A_RUN, "running", "waiting_for_input", "paused"])
@pytest.mark.parametrize("approved", [True, False])
def test_a_review_that_nobody_asked_for_is_refused(status: Status, approved: bool) -> None:
    given(*LIVES[status]).when(DecideReview(approved=approved)).then_rejected("not_waiting")


@pytest.mark.parametrize("status", [*WAITING_FOR_A_RUN, "waiting_for_input", "awaiting_review"])
@pytest.mark.parametrize("command", [c for c in worker_commands(step=1)], ids=name_of)
def test_a_worker_whose_run_is_over_writes_nothing(status: Status, command: WorkerCommand) -> None:
    given(*LIVES[status]).when(command).then_rejected("stale_run")


# Any living task


@pytest.mark.parametrize("status", LIVING)
def test_a_living_task_can_be_cancelled(status: Status) -> None:
    given(*LIVES[status]).when(CancelTask(by="bob", reason="no")).then(
        TaskCancelled(by="bob", reason="no", was_paused=status == "paused")
    )


@pytest.mark.parametrize("status", LIVING)
def test_a_living_task_times_out_at_its_own_deadline_only(status: Status) -> None:
    task = given(created(deadline=DEADLINE), *LIVES[status][1:])
    task.when(TimeOutTask(deadline=DEADLINE)).then(TaskTimedOut(deadline=DEADLINE))
    task.when(TimeOutTask(deadline=DEADLINE - timedelta(minutes=1))).then_rejected("deadline_moved")


def test_a_task_without_a_deadline_does_not_time_out() -> None:
    given(created()).when(TimeOutTask(deadline=DEADLINE)).then_rejected("deadline_moved")


# Keys, and a newer release's facts


@pytest.mark.parametrize(
    "command",
    [
        ReceiveInput(text="Hello", key="k1"),
        DecideReview(approved=True, key="k1"),
        RequestPause(key="k1"),
        ResumeTask(key="k1"),
        CancelTask(by="ann", key="k1"),
    ],
    ids=name_of,
)
def test_a_wish_with_a_key_that_is_in_the_history_was_granted(command: Command) -> None:
    given(created(), With(fact=InputReceived(text="Hello"), key="k1")).when(command).then_nothing()
    given(created(), With(fact=cancelled(), key="k1")).when(command).then_nothing()


def test_another_key_is_another_wish() -> None:
    given(created(), With(fact=InputReceived(text="Hello"), key="k1")).when(ReceiveInput(text="Hello", key="k2")).then(
        InputReceived(text="Hello")
    )


@pytest.mark.parametrize("command", [*every_command(), CancelTask(by="ann", key="k1")], ids=name_of)
def test_a_task_that_a_newer_release_wrote_to_is_left_alone(command: Command) -> None:
    newer = With(fact=UnknownFact(tag="task.forked", fields={"into": 2}), key="k1")
    given(created(), started(), newer).when(command).then_rejected("written_by_newer_release")


def test_a_rejection_says_why_in_a_sentence() -> None:
    decision = decide(start_run(7), fold(created(), completed()))
    assert decision == Rejected("ended", "the task is completed")
