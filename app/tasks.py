"""The one door to the log: execute a command, get a task, follow it."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import uuid_utils
from msgspec.structs import replace

from app.attached import Attached
from app.attaching import ATTEMPTS, AttachedTasks
from app.begun import Cause, Done
from app.commands import Command, CreateTask
from app.decide import Rejected
from app.executor import Executor, Outcome
from app.files import Upload, stored
from app.following import catch_up
from app.history import Viewed
from app.keys import hashed_key, keyed_task_id
from app.metrics import Metrics
from eventstore import codec
from eventstore.events import Owner, TaskFact, TaskId, UnknownFact
from eventstore.log import EventLog, LogFull, LogUnavailable, Recorded, Tail
from projections.task import Task

KEY_LIVES = timedelta(hours=24)
"""So long after its task's end a key still means that task."""
NEARLY_FULL = 0.9


class Tasks:
    """All tasks, as far as this process attends to them. Build with `open`; `close` waits for appends in flight."""

    def __init__(
        self, event_log: EventLog, metrics: Metrics, viewed: Viewed | None, *, strict_reads: bool, max_attached: int
    ) -> None:
        self.log = event_log
        self.metrics = metrics
        self._strict_reads = strict_reads
        self.attached = AttachedTasks(event_log, viewed, at_most=max_attached)
        self._executor = Executor(event_log, metrics, self.attached)
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
        tasks._tail = await event_log.tail(tasks.attached.on_arrival, tasks.attached.on_reset)
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
        return len(self.attached)

    def leave(self) -> None:
        """Whoever waits for a task is answered now: what it will be later, another process says."""
        if not self.leaving.done():
            self.leaving.set_result(None)

    async def close(self) -> None:
        """Let appends in flight end; then follow no more."""
        self.leave()
        await self._executor.close()
        await self.attached.close()
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
            self.attached.begin(owner, task_id)
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
        return await self._executor.execute(owner, task_id, command, cause)

    async def see_through(self, work: Coroutine[object, object, Outcome]) -> Outcome:
        """Have this done to its end, also where whoever asked for it goes away; `close` waits for it."""
        return await self._executor.see_through(work)

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
                    await self.attached.read_on(attached)
        except LogUnavailable:
            if attached.task.version == 0:
                raise
            return max(1, round(self.tail.age_s))
        return None

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

    def at_hand(self, owner: Owner, task_id: TaskId) -> Attached | None:
        """The task, if it is in memory and whole; it is as fresh as `is_fresh` says. Raises BadSubject."""
        return self.attached.at_hand(owner, task_id)

    def attach(self, owner: Owner, task_id: TaskId) -> AbstractAsyncContextManager[Attached]:
        """The task in memory, pinned while the context lasts; `INITIAL` if there is none. Raises LogUnavailable."""
        return self.attached.attach(owner, task_id)

    async def refresh(self, attached: Attached) -> None:
        """Have at least what the leader has now. Raises LogUnavailable."""
        await self.attached.refresh(attached)

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
