"""Time travel: a task as it was when the log had come to an earlier sequence."""

import asyncio

from app.attached import Attached
from app.following import PAGE, history_page
from app.tasks import Tasks
from eventstore.events import Owner, TaskId
from eventstore.log import EventLog, LogUnavailable
from projections.task import INITIAL, Task, evolve


class NotYet(Exception):
    """The log has not come so far: what it will hold there, nobody knows."""

    def __init__(self, last: int) -> None:
        super().__init__(f"the log's last sequence is {last}")


async def as_it_was(tasks: Tasks, owner: Owner, task_id: TaskId, at: int) -> Task:
    """The fold of the task's records with a sequence of `at` at most; `INITIAL` where there are none.

    Raises NotYet, whether or not there is such a task; LogUnavailable.
    """
    if at > tasks.tail.position:
        await tasks.tail.catch_up()
        if at > tasks.tail.position:
            raise NotYet(tasks.tail.position)
    # The tail has come to `at`, so what is attached has all that was there then: no leader needs to be asked.
    async with tasks.attach(owner, task_id) as attached:
        while attached.filling is not None:
            await asyncio.shield(attached.filling)
        task = await _fold_up_to(tasks.log, attached, at)
        if attached.void:
            raise LogUnavailable(f"{task_id}: the log changes under the reading")
        return task


async def _fold_up_to(log: EventLog, attached: Attached, at: int) -> Task:
    now = attached.task
    if now.sequence <= at:
        return now
    task = INITIAL
    while task.sequence < at:
        # The next record is at `now.sequence` at the latest, so there is always a page; a record after `at` shows that
        # none before it is missing. Between two sequences there are no more records than numbers.
        limit = min(PAGE, at - task.sequence)
        for recorded in await history_page(log, attached, task.sequence, now.sequence, limit=limit):
            if recorded.sequence > at:
                return task
            task = evolve(task, recorded)
    return task
