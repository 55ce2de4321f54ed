"""Logs to measure on: many tasks, written as fast as the server takes them, with the chain of each as it has to be."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

from eventstore.codec import encode
from eventstore.events import (
    Owner,
    PartialProduced,
    Record,
    StepStarted,
    TaskCompleted,
    TaskCreated,
    TaskFact,
    TaskId,
    TaskStarted,
    ToolUsed,
)
from eventstore.jetstream import JetStreamLog
from eventstore.log import Arrival, task_subject

OWNER = Owner("bench")
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SIDE_BY_SIDE = 100
AT_ONCE = 5_000
"""Half of what the server lets wait for its disk: more it would drop, silently."""

LIFE: tuple[TaskFact, ...] = (
    TaskCreated(agent="simulator", fingerprint="f" * 64, title="A brief", input={"text": "What do the tides do?"}),
    TaskStarted(run=1, worker="worker-1"),
    StepStarted(run=1, step=0, kind="tool", name="search", input={"words": "tides"}, input_sha256="0" * 64),
    ToolUsed(run=1, step=0, tool="search", output={"found": 3}, took=0.25, input_sha256="0" * 64),
    PartialProduced(run=1, step=1, offset=0, text="The tides follow the moon, "),
    PartialProduced(run=1, step=1, offset=27, text="some fifty minutes later each day."),
    StepStarted(run=1, step=2, kind="tool", name="cite", input={"page": 7}, input_sha256="1" * 64),
    ToolUsed(run=1, step=2, tool="cite", output={"page": 7}, took=0.125, input_sha256="1" * 64),
    PartialProduced(run=1, step=3, offset=0, text="[1]"),
    TaskCompleted(run=1, result="The tides follow the moon, some fifty minutes later each day. [1]"),
)
"""Ten facts."""


def numbered(number: int) -> TaskId:
    """The task of this number."""
    return TaskId(f"task_{_uuid(number)}")


def _uuid(number: int) -> str:
    """The UUID of a number; to have it from `UUID` takes as long as to write the record."""
    return f"00000000-0000-0000-0000-{number:012x}"


def arrivals(count: int, life: tuple[TaskFact, ...] = LIFE) -> Iterator[Arrival]:
    """So many records of tasks that have this life, a hundred tasks side by side."""
    sequence = number = 0
    while sequence < count:
        subjects = [task_subject(OWNER, numbered(number + place)) for place in range(SIDE_BY_SIDE)]
        correlations = [_uuid(number + place) for place in range(SIDE_BY_SIDE)]
        previous = [""] * SIDE_BY_SIDE
        number += SIDE_BY_SIDE
        for version, fact in enumerate(life, 1):
            for place, subject in enumerate(subjects):
                sequence += 1
                record = Record(
                    record_id=_uuid(sequence),
                    version=version,
                    at=BEGIN + timedelta(milliseconds=sequence),
                    actor="bench/0123456789ab",
                    causation_id=None,
                    correlation_id=correlations[place],
                    previous=previous[place],
                    fact=fact,
                )
                arrival = Arrival(sequence, subject, encode(record))
                previous[place] = arrival.sha256
                yield arrival


async def fill(log: JetStreamLog, count: int, life: tuple[TaskFact, ...] = LIFE) -> int:
    """Write so many records, whole hundreds of tasks; the log's last sequence."""
    coming = arrivals(count, life)
    last = 0
    while some := list(islice(coming, AT_ONCE)):
        for one in some[:-1]:
            # As an append has it; its acknowledgement is not asked for, that of the last one says that all are there.
            expected = {"Nats-Expected-Last-Sequence": str(one.sequence - 1)}
            await log.connection.publish(one.subject, one.stored, headers=expected)
        await log.put_back(some[-1:])
        last = some[-1].sequence
    return last
