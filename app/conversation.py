"""What an agent is told of its conversation: which earlier tasks, settled at creation, and what they said."""

from app.agents.agent import Exchange
from app.tasks import Tasks
from app.views import Lists
from eventstore.events import Owner, TaskId
from projections.listing import Filter
from projections.session import SessionView
from projections.task import ENDED, Task

MAX_EARLIER = 20
MAX_RESULT = 65_536
"""Characters of an earlier result that an agent is told."""


async def earlier_tasks(tasks: Tasks, lists: Lists, owner: Owner, session_id: str) -> tuple[TaskId, ...]:
    """The conversation's last tasks that have ended, oldest first: what ended never changes, so their ids are enough to
    tell every run of the next task the same. Raises LogUnavailable, ViewsUnavailable.
    """
    view = await seen(tasks, lists, owner, session_id)
    if view is None:
        return ()
    # What was before a deletion is not told again.
    wanted = Filter(session_id=session_id, statuses=ENDED, above=view.session.deletion)
    page = await lists.page(owner, wanted, limit=MAX_EARLIER)
    return tuple(task.task_id for task in reversed(page.tasks))


async def seen(tasks: Tasks, lists: Lists, owner: Owner, session_id: str) -> SessionView | None:
    """The session as it is now; None: nothing was ever said of it. Raises LogUnavailable, ViewsUnavailable."""
    await catch_up(tasks, lists)
    return await lists.session(owner, session_id)


async def catch_up(tasks: Tasks, lists: Lists) -> None:
    """Return once the views have what the log has: whoever has just been told an answer goes on from it. Raises
    LogUnavailable, ViewsUnavailable."""
    await tasks.tail.catch_up()
    await lists.reach(tasks.tail.position)


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
