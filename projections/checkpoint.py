"""How far a projection has come, and whether a log is the one that it was made of."""

import asyncio

from msgspec import Struct

from eventstore.events import Owner, TaskId
from eventstore.log import EventLog, LogUnavailable

ROUNDS = 8
"""How often a record that the leader has is looked for at a replica that may be behind."""


class Seen(Struct, frozen=True, kw_only=True):
    """The last task's record that was taken in."""

    owner: Owner
    task_id: TaskId
    sequence: int
    sha256: str


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The last sequence taken in, and which record of a task was the last (None: none)."""

    sequence: int
    seen: Seen | None


async def is_of(event_log: EventLog, checkpoint: Checkpoint, *, end: int) -> bool:
    """Whether this log, whose last sequence is `end`, holds what was taken in. (It says no where the last task was
    purged since: then what was made of it is made anew, which costs time and nothing else.) Raises LogUnavailable."""
    if end < checkpoint.sequence:
        return False
    seen = checkpoint.seen
    if seen is None:
        return True
    for _ in range(ROUNDS):
        at = await event_log.read(seen.owner, seen.task_id, after=seen.sequence - 1, limit=1)
        if at:
            return at[0].sequence == seen.sequence and at[0].sha256 == seen.sha256
        if await event_log.last(seen.owner, seen.task_id) < seen.sequence:
            return False
        await asyncio.sleep(0.1)
    raise LogUnavailable("a replica of the log is too far behind to begin from")
