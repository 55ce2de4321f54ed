"""The one door to the log: execute a command, get a task, follow it."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog
import uuid_utils
from msgspec import Struct
from msgspec.structs import replace

from app.attached import MAX_BUFFER, Attached
from app.commands import Command, CreateTask
from app.decide import Rejected, decide
from app.files import Upload, stored
from app.following import catch_up
from app.history import Viewed, read_history, read_up_to
from app.keys import hashed_key, keyed_task_id
from app.metrics import Metrics
from eventstore import codec
from eventstore.events import Owner, Record, TaskFact, TaskId, UnknownFact
from eventstore.log import (
    Arrival,
    EventLog,
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
ROUNDS = 32
"""How often a command is decided anew because someone else was faster."""
ATTEMPTS = 8
"""How often a task is attached anew because what was read of it turned out to be void."""
NEARLY_FULL = 0.9
Outcome = TypeVar("Outcome")


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
        if self._working:
            await asyncio.wait(self._working, timeout=10)
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
        return await self.see_through(self._execute(owner, task_id, command, cause))

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
                record = _record(decision, attached.task, command, cause)
                try:
                    with self.metrics.append_seconds.time():
                        recorded = await self.log.append(owner, task_id, record, attached.task.sequence)
                except WrongExpectedSequence as conflict:
                    log.info("task.append_conflict", task_id=task_id, expected=conflict.expected, found=conflict.found)
                    self.metrics.conflicts.inc()
                    await self._read_on(attached)
                    continue
                self.metrics.appended(recorded)
                if not attached.apply(recorded):
                    await self._read_on(attached)
                return Done(attached.task, recorded)
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
        gone = attached.void or (attached.idle and attached.task.version == 0)
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


def _record(fact: TaskFact, task: Task, command: Command, cause: Cause) -> Record:
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


def _seen(work: asyncio.Task[None]) -> None:
    """A failed reading is told by the task's being void, also where nobody waits for it; the next one attaches anew."""
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("task.unreadable", error=f"{type(error).__name__}: {error}")
