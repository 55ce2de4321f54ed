"""What a command leaves behind: the record of its decision, its outcome; and an append that nobody has to wait for."""

import asyncio
from datetime import UTC, datetime

import uuid_utils
from msgspec import Struct

from app.attached import Attached
from app.commands import Command
from app.decide import Rejected
from eventstore.events import Record, TaskFact
from eventstore.log import Recorded
from projections.task import Task


class Cause(Struct, frozen=True, kw_only=True):
    """Who wants something, and what led to it: what a record says beside its fact."""

    actor: str
    causation_id: str | None = None
    correlation_id: str | None = None
    traceparent: str | None = None


class Done(Struct, frozen=True):
    """A command's outcome: the task after it, and the record it made (None: the wish was already true)."""

    task: Task
    recorded: Recorded | None


class Begun(Struct, eq=False):
    """A command whose fact was sent. `since` is the monotonic clock's; the task's lock is held until the end."""

    attached: Attached
    command: Command
    cause: Cause
    outcome: asyncio.Future[Done | Rejected]
    since: float


def record_of(fact: TaskFact, task: Task, command: Command, cause: Cause) -> Record:
    """What is written of a decision on this task."""
    now = datetime.now(UTC)
    return Record(
        version=task.version + 1,
        at=now if task.updated_at is None else max(now, task.updated_at),
        actor=cause.actor,
        causation_id=cause.causation_id,
        correlation_id=task.correlation_id if task.version else cause.correlation_id,
        previous=task.sha256,
        record_id=str(uuid_utils.uuid7()),
        traceparent=cause.traceparent,
        key=command.key,
        fact=fact,
    )
