"""A task's history, read into memory: from the log, or the first part of a long one from the views.

The log has the last word: by the leader's last record, and by the hash that each record carries of the one before.
"""

import asyncio
from collections.abc import Awaitable, Callable

from app.attached import Attached
from eventstore.events import Owner, TaskId
from eventstore.log import EventLog, LogUnavailable, Recorded
from projections.task import Task, follows

MANY_RECORDS = 16
"""A history of so many is begun where the views are: a shorter one costs less from the log."""
READ_WITHIN_S = 5.0
AGAIN_S = 0.05

Viewed = Callable[[Owner, TaskId], Awaitable[Task | None]]
"""What the views have of a task, if they say so at once."""


async def read_history(log: EventLog, attached: Attached, viewed: Viewed | None) -> None:
    """All that the leader has now of a task of which we know nothing, or not enough. Raises LogUnavailable."""
    latest = await log.latest(attached.owner, attached.task_id)
    if latest is None:
        return
    if viewed is not None and attached.task.version == 0 and latest.record.version >= MANY_RECORDS:
        task = await viewed(attached.owner, attached.task_id)
        if task is not None and await _goes_on(log, task, latest) and attached.task.version == 0:
            attached.task = task
    if not attached.apply(latest):
        await read_up_to(log, attached, latest.sequence)


async def read_up_to(log: EventLog, attached: Attached, last: int) -> None:
    """What is missing up to this sequence, which the leader has. Raises LogUnavailable."""
    until = asyncio.get_running_loop().time() + READ_WITHIN_S
    while attached.task.sequence < last:
        more = await log.read(attached.owner, attached.task_id, after=attached.task.sequence)
        if not all(attached.apply(recorded) for recorded in more):
            raise LogUnavailable(f"{attached.task_id}: its records do not follow on each other")
        if attached.task.sequence < last:
            # Direct get may be answered by a replica that is behind the leader.
            if asyncio.get_running_loop().time() > until:
                raise LogUnavailable(f"{attached.task_id}: no replica has record {last}")
            await asyncio.sleep(AGAIN_S)


async def _goes_on(log: EventLog, task: Task, latest: Recorded) -> bool:
    """Whether this log goes on, or ends, where the views' task is. (Else it is another log, or went back.)"""
    if task.sequence >= latest.sequence:
        return task.sequence == latest.sequence and task.sha256 == latest.sha256
    after = await log.read(latest.owner, latest.task_id, after=task.sequence, limit=1)
    return bool(after) and follows(after[0], task)
