"""Which earlier tasks of its conversation an agent is told of, settled at creation."""

from app.tasks import Tasks
from app.views import Lists
from eventstore.events import Owner, TaskId
from projections.listing import Filter
from projections.session import SessionView
from projections.task import ENDED

MAX_EARLIER = 20


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
