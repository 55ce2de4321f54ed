"""What an agent is told that the earlier tasks of its conversation said."""

from app.agents.agent import Exchange
from app.tasks import Tasks
from projections.task import Task

MAX_RESULT = 65_536
"""Characters of an earlier result that an agent is told."""


async def exchanges(tasks: Tasks, task: Task) -> tuple[Exchange, ...]:
    """What was said in the task's conversation before it. One that was archived meanwhile is left out. Raises
    LogUnavailable."""
    found: list[Exchange] = []
    for task_id in task.earlier:
        attached, _ = await tasks.get(task.owner, task_id)
        if attached is not None:
            earlier = attached.task
            large = await tasks.large_fields(earlier)
            result = large.get("result", earlier.result)
            said = result[:MAX_RESULT] if isinstance(result, str) else None
            found.append(Exchange(input=large.get("input", earlier.input), result=said))
    return tuple(found)
