"""The history of a task, as whoever follows it gets it: up to where it goes on live."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from app.attached import Attached
from eventstore.log import EventLog, LogUnavailable, Recorded, Tail

PAGE = 256
PAGE_BYTES = 1024 * 1024
"""Records (and about their bytes) of a history that are in memory at once for one reader."""
READING = 2 * PAGE_BYTES
"""Bytes that such a reader holds, as they came and as they are read, about."""
TRIES = 40
TRY_EVERY_S = 0.05


async def catch_up(
    log: EventLog,
    tail: Tail,
    attached: Attached,
    *,
    after: int,
    genuine: Callable[[Recorded], bool] | None,
) -> AsyncGenerator[list[Recorded] | None]:
    """As `Tasks.catch_up` promises."""
    if after and not await _is_known(log, tail, attached, after, genuine):
        yield None
        after = 0
    if after > attached.task.sequence:
        await tail.catch_up()  # its reader heard more by another process: told live, it would hear that twice
        if attached.filling is not None:
            await asyncio.shield(attached.filling)
    while after < attached.task.sequence:
        page = await history_page(log, attached, after, attached.task.sequence)
        after = page[-1].sequence
        yield page


async def history(log: EventLog, attached: Attached) -> AsyncGenerator[Recorded]:
    """All that is on record of the task now, oldest first, a page of it in memory. Raises LogUnavailable."""
    after, up_to = 0, attached.task.sequence
    while after < up_to:
        for recorded in await history_page(log, attached, after, up_to):
            after = recorded.sequence
            yield recorded


async def _is_known(
    log: EventLog, tail: Tail, attached: Attached, sequence: int, genuine: Callable[[Recorded], bool] | None
) -> bool:
    """Whether a cursor is of this life of the log."""
    if genuine is None:
        return sequence <= tail.position or sequence <= await log.last_sequence()
    if sequence > attached.task.sequence:
        await tail.catch_up()  # another process may have shown its client more than we have seen
    if sequence > attached.task.sequence:
        return False
    found = await history_page(log, attached, sequence - 1, attached.task.sequence, limit=1)
    return found[0].sequence == sequence and genuine(found[0])


async def history_page(
    log: EventLog, attached: Attached, after: int, up_to: int, *, limit: int = PAGE
) -> list[Recorded]:
    """The next records of the history, at least one: from memory if it reaches back so far, else from the log. Those
    who read on from the same place at the same time share one reading."""
    recent = attached.recent
    if recent and (recent[0].record.version == 1 or recent[0].sequence <= after):
        return [recorded for recorded in recent if after < recorded.sequence <= up_to]
    where = after, limit
    reading = attached.reading.get(where)
    if reading is None:
        reading = attached.reading[where] = asyncio.ensure_future(_read(log, attached, after, up_to, limit))
        reading.add_done_callback(lambda done: _forget(attached, where, done))
    # Whoever asked for it first may leave: it goes on for the others.
    page = [recorded for recorded in await asyncio.shield(reading) if recorded.sequence <= up_to]
    return page or await _read(log, attached, after, up_to, limit)


def _forget(attached: Attached, where: tuple[int, int], done: asyncio.Task[list[Recorded]]) -> None:
    del attached.reading[where]
    if not done.cancelled():
        done.exception()  # seen, also where nobody waits for it any more


async def _read(log: EventLog, attached: Attached, after: int, up_to: int, limit: int) -> list[Recorded]:
    for _ in range(TRIES):
        page = await log.read(attached.owner, attached.task_id, after=after, limit=limit, max_bytes=PAGE_BYTES)
        if page and page[0].sequence <= up_to:
            return page
        await asyncio.sleep(TRY_EVERY_S)  # a replica that is behind
    raise LogUnavailable(f"{attached.task_id}: no replica has what comes after {after}")
