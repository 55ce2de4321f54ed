"""For what a task of Niyra's waits, and how it goes on: by our own API's routes, since the vendor has none."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from projections.task import Task


class WaitingFor(Struct, kw_only=True):
    """Somebody has to do something before the task goes on: `about` is the question or what is to be reviewed, `how`
    the request that does it. The vendor has no word for this, and reads such a task as running."""

    status: Literal["waiting_for_input", "awaiting_review", "paused"]
    about: str | None
    how: str


def waiting_for(task: Task) -> WaitingFor | UnsetType:
    """Unset where nobody has to act, and for a plan of Niyra's own, of which `pending_task_id` says all."""
    at = f"POST /tasks/{task.task_id}"
    match task.status:
        case "waiting_for_input":
            how = f'{at}/messages with {{"text": "..."}} and a token of scope tasks:write'
            return WaitingFor(status="waiting_for_input", about=task.question, how=how)
        case "awaiting_review":
            if task.plan_awaits_review and task.dialect == "niyra":
                return UNSET
            how = f'{at}/review with {{"approved": true}} and a token of scope tasks:write'
            return WaitingFor(status="awaiting_review", about=task.review, how=how)
        case "paused":
            return WaitingFor(status="paused", about=None, how=f"{at}/resume with a token of scope tasks:write")
        case _:
            return UNSET
