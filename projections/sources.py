"""Where an audit reads from: the log itself, or lines that were made of it; and the walk along either.

Anything with an `end`, `arrivals` and `blob` will do: the command line reads over HTTP by the same protocol.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from eventstore.events import TaskId
from eventstore.log import CHECKPOINTS, Arrival, BlobDamaged, EventLog, task_of_subject
from eventstore.replay import take_through
from projections.audit import Verification
from projections.proof import leaves_in


class Source(Protocol):
    """The log's records in order, and the blobs that they refer to."""

    @property
    def whole(self) -> bool:
        """Whether all records are shown (else those of one owner)."""
        ...

    async def end(self) -> int:
        """The last sequence, as of now. Raises LogError."""
        ...

    def arrivals(self, after: int, up_to: int) -> AsyncGenerator[list[Arrival]]:
        """The records after a sequence, up to another, in order. Raises LogError."""
        ...

    async def blob(self, name: str) -> bytes | None:
        """A blob; None: there is none by this name. Raises LogError."""
        ...


class LogSource:
    """The log itself, all of it."""

    whole = True

    def __init__(self, log: EventLog) -> None:
        self.log = log

    async def end(self) -> int:
        """The leader's word. Raises LogUnavailable."""
        return await self.log.last_sequence()

    async def arrivals(self, after: int, up_to: int) -> AsyncGenerator[list[Arrival]]:
        """The records after a sequence, up to another, in order. Raises LogUnavailable, LogIsAnother."""
        replay = await self.log.replay(after=after)
        try:
            async with aclosing(take_through(replay, up_to)) as batches:
                async for batch in batches:
                    if taken := [arrival for arrival in batch if arrival.sequence <= up_to]:
                        yield taken
        finally:
            await replay.close()

    async def blob(self, name: str) -> bytes | None:
        """A blob; of a damaged one, nothing. Raises LogUnavailable."""
        try:
            return await self.log.blobs.get(name)
        except BlobDamaged:
            return b""


async def verify(
    source: Source,
    verification: Verification,
    on_progress: Callable[[int, int], None],
    *,
    task: TaskId | None = None,
) -> None:
    """Show all of it to a verification, or one task's records and the checkpoints; `on_progress` is told how far it is
    and where the end is. Raises LogError where it can't be read on."""
    end = await source.end()
    async with aclosing(source.arrivals(0, end)) as batches:
        async for batch in batches:
            for arrival in batch:
                if task is None or arrival.subject == CHECKPOINTS or is_of(task, arrival.subject):
                    await _show(source, verification, arrival)
            on_progress(batch[-1].sequence, end)
    verification.finish(end)


def is_of(task: TaskId, subject: str) -> bool:
    """Whether a subject is that of this task, whoever owns it."""
    about = task_of_subject(subject)
    return about is not None and about[1] == task


async def _show(source: Source, verification: Verification, arrival: Arrival) -> None:
    own: bytes | None = None
    for wanted in verification.take(arrival):
        content = await source.blob(wanted.name)
        verification.blob(wanted, content)
        own = own or content
    if arrival.subject == CHECKPOINTS:
        verification.checkpoint(arrival, leaves_in(arrival, own))
