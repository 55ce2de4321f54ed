"""The tasks that are in memory: attached by whoever attends to them, fed by the tail, let go when nobody does."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog

from app.attached import MAX_BUFFER, Attached
from app.history import Viewed, read_history, read_up_to
from eventstore import codec
from eventstore.events import Owner, TaskId
from eventstore.log import Arrival, EventLog, LogUnavailable, task_subject

log = structlog.stdlib.get_logger()

ATTEMPTS = 8
"""How often a task is attached anew because what was read of it turned out to be void."""


class AttachedTasks:
    """By subject, the ones used last at the end. `on_arrival` and `on_reset` are for the tail; `close` last."""

    def __init__(self, event_log: EventLog, viewed: Viewed | None, *, at_most: int) -> None:
        self._log = event_log
        self._viewed = viewed
        self._at_most = at_most
        self.held: OrderedDict[str, Attached] = OrderedDict()

    def __len__(self) -> int:
        return len(self.held)

    def begin(self, owner: Owner, task_id: TaskId) -> None:
        """A task that nobody else can know of yet: there is nothing to be read."""
        self.held[task_subject(owner, task_id)] = Attached(owner, task_id)

    def find(self, subject: str) -> Attached | None:
        """The task, if all that was written of it is in memory; also where that is nothing yet."""
        attached = self.held.get(subject)
        return None if attached is None or attached.void or attached.filling is not None else attached

    def at_hand(self, owner: Owner, task_id: TaskId) -> Attached | None:
        """The task, if it is in memory and whole; how fresh it is, `Tasks.is_fresh` says. Raises BadSubject."""
        subject = task_subject(owner, task_id)
        attached = self.find(subject)
        if attached is None or not attached.task.version:
            return None
        self.held.move_to_end(subject)
        return attached

    def hold(self, attached: Attached, subject: str) -> None:
        """One pin more, and it is the one used last."""
        self.held.move_to_end(subject)
        attached.pins += 1

    @asynccontextmanager
    async def attach(self, owner: Owner, task_id: TaskId) -> AsyncGenerator[Attached]:
        """The task in memory, pinned while the context lasts; `INITIAL` if there is none. Raises LogUnavailable."""
        subject = task_subject(owner, task_id)
        for _ in range(ATTEMPTS):
            attached = self.held.get(subject)
            if attached is None:
                attached = Attached(owner, task_id)
                self._begin_filling(attached)
                self.held[subject] = attached
            self.hold(attached, subject)
            try:
                if attached.filling is not None:
                    await asyncio.shield(attached.filling)
                if not attached.void:
                    yield attached
                    return
            finally:
                self.let_go(attached)
        raise LogUnavailable(f"{task_id}: the log changes under the reading")

    def let_go(self, attached: Attached) -> None:
        """One pin less."""
        attached.pins -= 1
        subject = task_subject(attached.owner, attached.task_id)
        gone = attached.void or (attached.task.version == 0 and attached.idle)
        if gone and self.held.get(subject) is attached:
            del self.held[subject]
        for _ in range(8):  # a few at a time: where most are held on to, looking at all would take too long
            if len(self.held) <= self._at_most:
                return
            oldest, candidate = self.held.popitem(last=False)
            if not candidate.idle:
                self.held[oldest] = candidate

    def _begin_filling(self, attached: Attached) -> None:
        attached.buffer = []
        attached.filling = asyncio.ensure_future(self._fill(attached))
        attached.filling.add_done_callback(_seen)

    async def _fill(self, attached: Attached) -> None:
        """Read the history up to what the leader says is last, fold it, then what the tail brought meanwhile."""
        try:
            await read_history(self._log, attached, self._viewed)
            buffered, attached.buffer = attached.buffer or [], None
            for arrival in buffered:
                if not attached.apply(codec.recorded(arrival)):
                    attached.make_void("uncertain")
                    return
        except BaseException:
            attached.make_void("unreadable")
            raise
        finally:
            attached.filling = None

    async def read_on(self, attached: Attached) -> None:
        """Read what the leader has beyond what we have; void where it does not follow on ours."""
        had = attached.task.sequence
        last = await self._log.last(attached.owner, attached.task_id)
        # Compared with what we had when we asked: the tail may have brought more since.
        if last < had:
            attached.make_void("went_back")
            return
        try:
            await read_up_to(self._log, attached, last)
        except LogUnavailable:
            attached.make_void("uncertain")
            raise

    async def refresh(self, attached: Attached) -> None:
        """Have at least what the leader has now. Raises LogUnavailable."""
        last = await self._log.last(attached.owner, attached.task_id)
        if last != attached.task.sequence:
            await self.read_on(attached)

    def on_arrival(self, arrival: Arrival) -> None:
        """From the tail."""
        attached = self.held.get(arrival.subject)
        if attached is None:
            return
        if attached.buffer is not None:
            attached.buffer.append(arrival)
            if len(attached.buffer) > MAX_BUFFER:
                attached.make_void("buffer_full")
            return
        if arrival.sequence <= attached.task.sequence:
            return
        if not attached.apply(codec.recorded(arrival)):
            # It does not follow on what we have: read again, behind the back of everybody who waits.
            self._begin_filling(attached)

    def on_reset(self) -> None:
        """The log is another one."""
        attached, self.held = self.held, OrderedDict()
        for one in attached.values():
            one.make_void("reset")

    async def close(self) -> None:
        """Everybody is told that this is over; no more is read."""
        for attached in self.held.values():
            attached.make_void("closing")
        filling = [attached.filling for attached in self.held.values() if attached.filling is not None]
        await asyncio.gather(*filling, return_exceptions=True)


def _seen(work: asyncio.Task[None]) -> None:
    """A failed reading is told by the task's being void, also where nobody waits for it; the next one attaches anew."""
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("task.unreadable", error=f"{type(error).__name__}: {error}")
