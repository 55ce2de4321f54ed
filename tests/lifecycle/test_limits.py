"""What holds for every command in every status, and at the end of a history that is as long as it may be."""

from functools import cache

import pytest
from msgspec.structs import replace

from app.commands import CancelTask, Command, QueueTask, ReceiveInput, StartRun
from app.decide import Rejected, decide
from eventstore.events import MAX_FACTS, Ending, TaskCancelled, TaskCompleted, TaskFailed
from eventstore.log import Recorded
from projections.task import INITIAL, Status, Task, evolve
from tests.given import LIVES, created, fold, history, message, record_after, started
from tests.lifecycle.commands import (
    client_commands,
    complete,
    every_command,
    fail,
    finish_step,
    name_of,
    worker_commands,
)


@pytest.mark.parametrize("status", LIVES)
def test_every_command_has_an_answer_in_every_status(status: Status) -> None:
    """One fact that folds, nothing, or a reason: never an exception."""
    records = history(*LIVES[status])
    task = fold(*LIVES[status])
    for run in (-1, 0, 1, 2):
        for step in (-1, 0, 1, 2):
            for command in every_command(run, step):
                decision = decide(command, task)
                if decision is None or isinstance(decision, Rejected):
                    continue
                after = evolve(task, record_after(records[-1] if records else None, decision))
                assert after.version == task.version + 1


@cache
def longest() -> tuple[Task, Recorded]:
    """A running task that has one fact less than the last one allowed, and its last record."""
    last = record_after(None, created())
    task = evolve(INITIAL, last)
    while task.version < MAX_FACTS - 1:
        last = record_after(last, started() if task.version == 1 else message())
        task = evolve(task, last)
    return task, last


@pytest.mark.parametrize(
    "command",
    [QueueTask(limit=1), StartRun(run=1, worker="w1"), *worker_commands(), *client_commands()],
    ids=name_of,
)
def test_the_last_fact_allowed_is_an_end(command: Command) -> None:
    task, last = longest()
    decision = decide(command, task)
    if decision is None or isinstance(decision, Rejected):
        return
    assert isinstance(decision, Ending)
    ended = evolve(task, record_after(last, decision))
    assert (ended.version, ended.ended) == (MAX_FACTS, True)
    again = decide(command, ended)
    assert again is None or isinstance(again, Rejected)


def test_a_task_that_says_too_much_fails() -> None:
    assert MAX_FACTS == 20_000
    task, _ = longest()
    assert decide(finish_step(), task) == TaskFailed(code="too_many_facts", message="a task has at most 20000 facts")


def test_the_ends_that_a_long_task_is_given_are_its_own() -> None:
    task, _ = longest()
    assert decide(complete(result="42"), task) == TaskCompleted(run=1, result="42")
    assert decide(fail(code="bad"), task) == TaskFailed(code="bad", message="it broke")
    assert decide(CancelTask(by="bob"), task) == TaskCancelled(by="bob")


def test_a_task_one_fact_shorter_goes_on() -> None:
    task = replace(longest()[0], version=MAX_FACTS - 2)
    assert decide(ReceiveInput(text="Hurry up"), task) == message()
