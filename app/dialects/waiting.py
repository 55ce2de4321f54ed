"""Waiting for a task to be so, within a time, whatever becomes of what is attached meanwhile."""

import asyncio
from collections.abc import Callable

from app.problems import NotFound
from app.tasks import Tasks
from projections.task import Task


async def wait_until(tasks: Tasks, task: Task, satisfied: Callable[[Task], bool], wait_s: float) -> Task:
    """The task once it is so, or the time is over. Raises NotFound, LogUnavailable."""
    until = asyncio.get_running_loop().time() + wait_s
    while True:
        async with tasks.attach(task.owner, task.task_id) as attached:
            await attached.until(satisfied, until - asyncio.get_running_loop().time())
            if not attached.task.version:
                raise NotFound("no such task")
            if not attached.void:  # else the log went back, and this was its other life's
                return attached.task
