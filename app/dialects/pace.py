"""How long a kind poller waits before it asks again."""

from datetime import UTC, datetime
from math import inf

from projections.task import Status, Task

LEAST_S: dict[Status, float] = {
    "absent": 1.0,
    "pending": 1.0,
    "queued": 2.0,
    "running": 1.0,
    "waiting_for_input": 5.0,
    "awaiting_review": 5.0,
    "paused": 5.0,
}
"""Of what has not ended. Where somebody has to do something first, there is less hurry."""
LONGEST_S = 10.0
SHARE = 0.5
"""Of the time that the task has taken so far: so the end is heard of before it has taken half as long again."""


def poll_after_s(task: Task, at: datetime | None) -> float | None:
    """Whole seconds, for who asks at that time; None: it has ended."""
    if task.ended:
        return None
    began = task.created_at
    taken_s = 0.0 if began is None or at is None else (at - began).total_seconds()
    return min(LONGEST_S, max(LEAST_S.get(task.status, 1.0), float(int(taken_s * SHARE))))


def steady_until(task: Task, at: datetime) -> float:
    """The time (of the wall clock, in seconds) until which who asks is told the same as at that time."""
    if task.ended or task.created_at is None:
        return inf
    taken_s = max(0.0, (at - task.created_at).total_seconds())
    return inf if taken_s * SHARE >= LONGEST_S else task.created_at.timestamp() + (int(taken_s * SHARE) + 1) / SHARE


def retry_after(task: Task, *, least_s: float = 0.0, now: datetime | None = None) -> dict[str, str]:
    """The header that says so; none where the task has ended."""
    wait_s = poll_after_s(task, now or datetime.now(UTC))
    return {} if wait_s is None else {"Retry-After": f"{max(wait_s, least_s):.0f}"}
