"""The one door to the log: execute a command, get a task, follow it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import structlog
import uuid_utils
from msgspec.structs import replace

from app.attached import MAX_BUFFER, Attached
from app.begun import Begun, Cause, Done, record_of
from app.commands import Command, CreateTask
from app.decide import Rejected, decide
from app.files import Upload, stored
from app.following import catch_up
from app.history import Viewed, read_history, read_up_to
from app.keys import hashed_key, keyed_task_id
from app.metrics import Metrics
from eventstore import codec
from eventstore.events import Owner, TaskFact, TaskId, UnknownFact
from eventstore.log import (
    Arrival,
    EventLog,
    LogError,
    LogFull,
    LogUnavailable,
    OutcomeUnknown,
    Recorded,
    Tail,
    WrongExpectedSequence,
    task_subject,
)
from projections.task import Task

log = structlog.stdlib.get_logger()

KEY_LIVES = timedelta(hours=24)
"""So long after its task's end a key still means that task."""
CLOSES_WITHIN_S = 10.0
ROUNDS = 32
"""How often a command is decided anew because someone else was faster."""
ATTEMPTS = 8
"""How often a task is attached anew because what was read of it turned out to be void."""
NEARLY_FULL = 0.9
Outcome = TypeVar("Outcome")


class Tasks:
    """All tasks, as far as this process attends to them. Build with `open`; `close` waits for appends in flight."""

    def __init__(
        self, event_log: EventLog, metrics: Metrics, viewed: Viewed | None, *, strict_reads: bool, max_attached: int
    ) -> None:
        self.log = event_log
        self.metrics = metrics
        self._viewed = viewed
        self._strict_reads = strict_reads
        self._max_attached = max_attached
        self._attached: OrderedDict[str, Attached] = OrderedDict()
        self._working: set[asyncio.Task[object]] = set()
        self._begun: set[Begun] = set()
        self._one_ended: asyncio.Future[None] | None = None
        self._tail: Tail | None = None
        self.leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(
        cls,
        event_log: EventLog,
        metrics: Metrics,
        viewed: Viewed | None = None,
        *,
        strict_reads: bool = False,
        max_attached: int = 10_000,
    ) -> "Tasks":
        """Follow the log from now on. `strict_reads`: a poll waits for the leader's last sequence."""
        tasks = cls(event_log, metrics, viewed, strict_reads=strict_reads, max_attached=max_attached)
        tasks._tail = await event_log.tail(tasks._on_arrival, tasks._on_reset)
        metrics.watch_log(event_log, tasks._tail, lambda: tasks.attached_count)
        return tasks

    @property
    def tail(self) -> Tail:
        """The live reader."""
        assert self._tail is not None, "build Tasks with open()"
        return self._tail

    @property
    def attached_count(self) -> int:
        """Tasks in memory."""
        return len(self._attached)

    def leave(self) -> None:
        """Whoever waits for a task is answered now: what it will be later, another process says."""
        if not self.leaving.done():
            self.leaving.set_result(None)

    async def close(self) -> None:
        """Let appends in flight end; then follow no more."""
        self.leave()
        until = time.monotonic() + CLOSES_WITHIN_S
        while (self._working or self._begun) and time.monotonic() < until:
            self._one_ended = self.leaving.get_loop().create_future()
            some = {*self._working, self._one_ended}
            await asyncio.wait(some, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
        for attached in self._attached.values():
            attached.make_void("closing")
        filling = [attached.filling for attached in self._attached.values() if attached.filling is not None]
        await asyncio.gather(*filling, return_exceptions=True)
        await self.tail.close()

    # --- commands -------------------------------------------------------------------------------------------------

    async def create(
        self,
        owner: Owner,
        command: CreateTask,
        cause: Cause,
        *,
        key: str | None = None,
        uploads: Sequence[Upload] = (),
    ) -> Done | Rejected:
        """Begin a task. With an idempotency key, a repeat meets its own first fact, up to 24 h after the task's end.
        Its files are stored before it; those of a repeat are not.

        Raises LogFull from 90 % on, so that running tasks can still end; OutcomeUnknown; LogUnavailable.
        """
        if self.log.fullness >= NEARLY_FULL:
            raise LogFull("the log is nearly full; tasks that run may still end")
        if key is None:
            task_id = TaskId(f"task_{uuid_utils.uuid7()}")
            if uploads:
                command = replace(command, files=await stored(self.log.blobs, owner, task_id, uploads))
            self._attached[task_subject(owner, task_id)] = Attached(owner, task_id)
            return await self.execute(owner, task_id, command, cause)
        command = replace(command, key=hashed_key("create", key))
        generation = 0
        while True:
            task_id = keyed_task_id(owner, command.dialect, key, generation)
            async with self.attach(owner, task_id) as attached:
                ended_at, there = attached.task.ended_at, attached.task.version > 0
            if ended_at is None or datetime.now(UTC) - ended_at <= KEY_LIVES:
                if not there:
                    command = replace(command, files=await stored(self.log.blobs, owner, task_id, uploads))
                return await self.execute(owner, task_id, command, cause)
            generation += 1

    async def execute(self, owner: Owner, task_id: TaskId, command: Command, cause: Cause) -> Done | Rejected:
        """Decide, append, apply. Goes on if the caller goes away: a request's life is not the task's life.

        Raises OutcomeUnknown, LogUnavailable, LogFull.
        """
        begun = self._begin(owner, task_id, command, cause)
        if begun is not None:
            return await begun
        return await self.see_through(self._execute(owner, task_id, command, cause))

    def _begin(
        self, owner: Owner, task_id: TaskId, command: Command, cause: Cause
    ) -> asyncio.Future[Done | Rejected] | None:
        """Where nobody has to be asked or waited for, send the fact; the outcome comes by itself, whatever becomes
        of whoever waits for it. (A task of asyncio's for each would take twice as long.)"""
        subject = task_subject(owner, task_id)
        attached = self._attached.get(subject)
        if attached is None or attached.void or attached.filling is not None or not attached.take_lock():
            return None
        sent = False
        try:
            decision = decide(command, attached.task)
            if decision is None or isinstance(decision, Rejected):
                return None
            record = record_of(decision, attached.task, command, cause)
            outcome: asyncio.Future[Done | Rejected] = self.leaving.get_loop().create_future()
            begun = Begun(attached, command, cause, outcome, time.monotonic())
            sent = self.log.begin(owner, task_id, record, attached.task.sequence, partial(self._ended, begun))
        finally:
            if not sent:
                attached.lock.release()
        if not sent:
            return None
        self._attached.move_to_end(subject)
        attached.pins += 1
        self._begun.add(begun)
        return outcome

    def _ended(self, begun: Begun, end: Recorded | LogError) -> None:
        """What was begun is in the log, or is not."""
        attached, outcome = begun.attached, begun.outcome
        self._begun.discard(begun)
        if self._one_ended is not None and not self._one_ended.done():
            self._one_ended.set_result(None)
        applied = False
        if isinstance(end, Recorded):
            self.metrics.appended(end, time.monotonic() - begun.since)
            try:
                applied = attached.apply(end)
            except Exception as error:
                # A fault of ours; its lock would stay taken, and whoever asked would wait for ever.
                log.exception("task.not_applied", task_id=attached.task_id)
                attached.make_void("fault")
                end = _unknown(attached.task_id, error)
        if isinstance(end, Recorded | WrongExpectedSequence) and not applied:
            working = asyncio.ensure_future(self._go_on(begun, end))
            self._working.add(working)
            working.add_done_callback(self._worked)
            working.add_done_callback(partial(_tell, outcome))
            return
        self._free(attached)
        if isinstance(end, LogError):
            log.warning("task.command_failed", error=f"{type(end).__name__}: {end}")
        if outcome.done():
            return
        if isinstance(end, LogError):
            outcome.set_exception(end)
        else:
            outcome.set_result(Done(attached.task, end))

    async def _go_on(self, begun: Begun, end: Recorded | WrongExpectedSequence) -> Done | Rejected:
        """Others were faster, or what we had was void: read on; then decide anew, if it was not written."""
        attached = begun.attached
        try:
            if isinstance(end, Recorded):
                return await self._take_in(attached, end)
            self._note_conflict(attached, end)
            await self._read_on(attached)
        finally:
            self._free(attached)
        return await self._execute(attached.owner, attached.task_id, begun.command, begun.cause)

    async def _take_in(self, attached: Attached, recorded: Recorded) -> Done:
        """What is in the log; where it does not follow on what we have, that is read on. Raises OutcomeUnknown."""
        if not attached.apply(recorded):
            try:
                await self._read_on(attached)
            except LogUnavailable as error:
                raise _unknown(attached.task_id, error) from error  # LogUnavailable would say that nothing was done
        return Done(attached.task, recorded)

    def _free(self, attached: Attached) -> None:
        attached.lock.release()
        attached.pins -= 1
        self._let_go(task_subject(attached.owner, attached.task_id), attached)

    def _note_conflict(self, attached: Attached, conflict: WrongExpectedSequence) -> None:
        found = conflict.found
        log.info("task.append_conflict", task_id=attached.task_id, expected=conflict.expected, found=found)
        self.metrics.conflicts.inc()

    async def see_through(self, work: Coroutine[object, object, Outcome]) -> Outcome:
        """Have this done to its end, also where whoever asked for it goes away; `close` waits for it."""
        working = asyncio.ensure_future(work)
        self._working.add(working)
        working.add_done_callback(self._worked)
        return await asyncio.shield(working)

    async def _execute(self, owner: Owner, task_id: TaskId, command: Command, cause: Cause) -> Done | Rejected:
        for _ in range(ROUNDS):
            async with self.attach(owner, task_id) as attached, attached.lock:
                decision = decide(command, attached.task)
                if decision is None or isinstance(decision, Rejected):
                    if await self._has_moved_on(attached, command):
                        continue
                    return decision or Done(attached.task, None)
                record = record_of(decision, attached.task, command, cause)
                since = time.monotonic()
                try:
                    recorded = await self.log.append(owner, task_id, record, attached.task.sequence)
                except WrongExpectedSequence as conflict:
                    self._note_conflict(attached, conflict)
                    await self._read_on(attached)
                    continue
                self.metrics.appended(recorded, time.monotonic() - since)
                return await self._take_in(attached, recorded)
        raise OutcomeUnknown(f"{task_id}: others were faster {ROUNDS} times", task_id=task_id)

    async def _has_moved_on(self, attached: Attached, command: Command) -> bool:
        """Whether a decision that writes nothing rests on an old state. No expectation proves it: the leader must.

        (A worker refused because this process had not heard yet of the user's answer would let its task lie.)
        """
        if attached.task.ended or (isinstance(command, CreateTask) and attached.task.version):
            return attached.void  # what was decided can't change any more
        version = attached.task.version
        await self._read_on(attached)
        return attached.void or attached.task.version != version

    def _worked(self, work: asyncio.Task[object]) -> None:
        self._working.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.warning("task.command_failed", error=f"{type(error).__name__}: {error}")

    # --- reading --------------------------------------------------------------------------------------------------

    async def get(self, owner: Owner, task_id: TaskId) -> tuple[Attached | None, int | None]:
        """The task, fresh, or None; and its age in seconds where no leader could be asked (None: it is fresh).

        Raises LogUnavailable where it would have to be read and can't be.
        """
        for _ in range(ATTEMPTS):
            async with self.attach(owner, task_id) as attached:
                age_s = None if self.is_fresh(attached) else await self._freshen(attached)
                if attached.void:
                    continue  # while it was made fresh it turned out to be of another life of the log
                return (attached, age_s) if attached.task.version else (None, None)
        raise LogUnavailable(f"{task_id}: the log changes under the reading")

    def at_hand(self, owner: Owner, task_id: TaskId) -> Attached | None:
        """The task, if it is in memory and whole; it is as fresh as `is_fresh` says. Raises BadSubject."""
        subject = task_subject(owner, task_id)
        attached = self._attached.get(subject)
        if attached is None or attached.void or attached.filling is not None or not attached.task.version:
            return None
        self._attached.move_to_end(subject)
        return attached

    def is_fresh(self, attached: Attached) -> bool:
        """Whether nobody needs to be asked before a poll is told what is attached: nothing follows an end."""
        if attached.task.ended:
            return True
        return not self._strict_reads and attached.task.version > 0 and self.tail.proven

    async def _freshen(self, attached: Attached) -> int | None:
        try:
            if self._strict_reads:
                await self.tail.catch_up()
                if attached.filling is not None:  # what the tail brought did not fit: it is read again
                    await asyncio.shield(attached.filling)
            else:
                last = await self.log.last(attached.owner, attached.task_id)
                if last > attached.task.sequence:
                    await self._read_on(attached)
        except LogUnavailable:
            if attached.task.version == 0:
                raise
            return max(1, round(self.tail.age_s))
        return None

    @asynccontextmanager
    async def attach(self, owner: Owner, task_id: TaskId) -> AsyncGenerator[Attached]:
        """The task in memory, pinned while the context lasts; `INITIAL` if there is none. Raises LogUnavailable."""
        subject = task_subject(owner, task_id)
        for _ in range(ATTEMPTS):
            attached = self._attached.get(subject)
            if attached is None:
                attached = Attached(owner, task_id)
                self._begin_filling(attached)
                self._attached[subject] = attached
            self._attached.move_to_end(subject)
            attached.pins += 1
            try:
                if attached.filling is not None:
                    await asyncio.shield(attached.filling)
                if not attached.void:
                    yield attached
                    return
            finally:
                attached.pins -= 1
                self._let_go(subject, attached)
        raise LogUnavailable(f"{task_id}: the log changes under the reading")

    def _let_go(self, subject: str, attached: Attached) -> None:
        gone = attached.void or (attached.task.version == 0 and attached.idle)
        if gone and self._attached.get(subject) is attached:
            del self._attached[subject]
        for _ in range(8):  # a few at a time: where most are held on to, looking at all would take too long
            if len(self._attached) <= self._max_attached:
                return
            oldest, candidate = self._attached.popitem(last=False)
            if not candidate.idle:
                self._attached[oldest] = candidate

    def _begin_filling(self, attached: Attached) -> None:
        attached.buffer = []
        attached.filling = asyncio.ensure_future(self._fill(attached))
        attached.filling.add_done_callback(_seen)

    async def _fill(self, attached: Attached) -> None:
        """Read the history up to what the leader says is last, fold it, then what the tail brought meanwhile."""
        try:
            await read_history(self.log, attached, self._viewed)
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

    async def _read_on(self, attached: Attached) -> None:
        """Read what the leader has beyond what we have; void where it does not follow on ours."""
        had = attached.task.sequence
        last = await self.log.last(attached.owner, attached.task_id)
        # Compared with what we had when we asked: the tail may have brought more since.
        if last < had:
            attached.make_void("went_back")
            return
        try:
            await read_up_to(self.log, attached, last)
        except LogUnavailable:
            attached.make_void("uncertain")
            raise

    async def refresh(self, attached: Attached) -> None:
        """Have at least what the leader has now. Raises LogUnavailable."""
        last = await self.log.last(attached.owner, attached.task_id)
        if last != attached.task.sequence:
            await self._read_on(attached)

    async def large_fields(self, task: Task) -> dict[str, object]:
        """The fields of the task that are too big for its view, fetched. Raises LogUnavailable."""
        large: dict[str, object] = {}
        for name, reference in task.blobs.items():
            content = await self.log.blobs.get(reference.name)
            if content is not None:
                large[name] = codec.field_of(content, name)
        return large

    async def whole_facts(
        self, attached: Attached, *, after: int
    ) -> AsyncGenerator[tuple[int, TaskFact | UnknownFact]]:
        """The task's facts after a sequence, what is too big for the log fetched. Raises LogUnavailable."""
        for recorded in await self.log.read(attached.owner, attached.task_id, after=after):
            yield recorded.sequence, await self.whole_fact(recorded)

    async def whole_fact(self, recorded: Recorded) -> TaskFact | UnknownFact:
        """The record's fact, with what is too big for the log. Raises LogUnavailable."""
        fact, reference = recorded.record.fact, recorded.record.blob
        if reference is None or isinstance(fact, UnknownFact):
            return fact
        content = await self.log.blobs.get(reference.name)
        if content is None:
            raise LogUnavailable(f"{recorded.task_id}: blob {reference.name} is missing")
        return codec.unpack(fact, content)

    # --- following ------------------------------------------------------------------------------------------------

    def catch_up(
        self, attached: Attached, *, after: int, genuine: Callable[[Recorded], bool] | None = None
    ) -> AsyncGenerator[list[Recorded] | None]:
        """History after a sequence, in lists of records, up to all that is attached. Whoever joins a task's circle as
        soon as this comes to its end, before anything else is awaited, follows it without a gap.

        `genuine` judges the record at `after`: where it says no, or there is none, the first item is None (a reset)
        and the history comes from its beginning. Raises LogUnavailable.
        """
        return catch_up(self.log, self.tail, attached, after=after, genuine=genuine)

    # --- the tail -------------------------------------------------------------------------------------------------

    def _on_arrival(self, arrival: Arrival) -> None:
        attached = self._attached.get(arrival.subject)
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

    def _on_reset(self) -> None:
        attached, self._attached = self._attached, OrderedDict()
        for one in attached.values():
            one.make_void("reset")


def _unknown(task_id: TaskId, why: Exception) -> OutcomeUnknown:
    return OutcomeUnknown(f"{task_id}: {type(why).__name__}: {why}", task_id=task_id)


def _tell(outcome: asyncio.Future[Done | Rejected], work: asyncio.Task[Done | Rejected]) -> None:
    """How the work ended, to whoever still waits for it."""
    if outcome.done():
        return
    if work.cancelled():
        outcome.cancel()
    elif (error := work.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(work.result())


def _seen(work: asyncio.Task[None]) -> None:
    """A failed reading is told by the task's being void, also where nobody waits for it; the next one attaches anew."""
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("task.unreadable", error=f"{type(error).__name__}: {error}")
