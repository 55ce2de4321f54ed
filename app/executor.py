"""Commands, from the decision to the outcome: decide, append, apply; on a conflict, round again."""

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import TypeVar

import structlog

from app.attached import Attached
from app.attaching import AttachedTasks
from app.begun import Begun, Cause, Done, record_of
from app.commands import Command, CreateTask
from app.decide import Rejected, decide
from app.metrics import Metrics
from eventstore.events import Owner, TaskId
from eventstore.log import (
    EventLog,
    LogError,
    LogUnavailable,
    OutcomeUnknown,
    Recorded,
    WrongExpectedSequence,
    task_subject,
)

log = structlog.stdlib.get_logger()

CLOSES_WITHIN_S = 10.0
ROUNDS = 32
"""How often a command is decided anew because someone else was faster."""
Outcome = TypeVar("Outcome")


class Executor:
    """What was begun goes on whatever becomes of whoever began it; `close` waits for it."""

    def __init__(self, event_log: EventLog, metrics: Metrics, attached: AttachedTasks) -> None:
        self._log = event_log
        self._metrics = metrics
        self._attached = attached
        self._working: set[asyncio.Task[object]] = set()
        self._begun: set[Begun] = set()
        self._one_ended: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Let what is in flight end, for a while."""
        until = time.monotonic() + CLOSES_WITHIN_S
        while (self._working or self._begun) and time.monotonic() < until:
            self._one_ended = self._loop.create_future()
            some = {*self._working, self._one_ended}
            await asyncio.wait(some, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)

    async def execute(self, owner: Owner, task_id: TaskId, command: Command, cause: Cause) -> Done | Rejected:
        """Decide, append, apply. Goes on if the caller goes away: a request's life is not the task's life.

        Raises OutcomeUnknown, LogUnavailable, LogFull.
        """
        begun = self._begin(owner, task_id, command, cause)
        if begun is not None:
            return await begun
        return await self.see_through(self._execute(owner, task_id, command, cause))

    async def see_through(self, work: Coroutine[object, object, Outcome]) -> Outcome:
        """Have this done to its end, also where whoever asked for it goes away; `close` waits for it."""
        working = asyncio.ensure_future(work)
        self._working.add(working)
        working.add_done_callback(self._worked)
        return await asyncio.shield(working)

    def _begin(
        self, owner: Owner, task_id: TaskId, command: Command, cause: Cause
    ) -> asyncio.Future[Done | Rejected] | None:
        """Where nobody has to be asked or waited for, send the fact; the outcome comes by itself, whatever becomes
        of whoever waits for it. (A task of asyncio's for each would take twice as long.)"""
        subject = task_subject(owner, task_id)
        attached = self._attached.find(subject)
        if attached is None or not attached.take_lock():
            return None
        sent = False
        try:
            decision = decide(command, attached.task)
            if decision is None or isinstance(decision, Rejected):
                return None
            record = record_of(decision, attached.task, command, cause)
            outcome: asyncio.Future[Done | Rejected] = self._loop.create_future()
            begun = Begun(attached, command, cause, outcome, time.monotonic())
            sent = self._log.begin(owner, task_id, record, attached.task.sequence, partial(self._ended, begun))
        finally:
            if not sent:
                attached.lock.release()
        if not sent:
            return None
        self._attached.hold(attached, subject)
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
            self._metrics.appended(end, time.monotonic() - begun.since)
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
            await self._attached.read_on(attached)
        finally:
            self._free(attached)
        return await self._execute(attached.owner, attached.task_id, begun.command, begun.cause)

    async def _take_in(self, attached: Attached, recorded: Recorded) -> Done:
        """What is in the log; where it does not follow on what we have, that is read on. Raises OutcomeUnknown."""
        if not attached.apply(recorded):
            try:
                await self._attached.read_on(attached)
            except LogUnavailable as error:
                raise _unknown(attached.task_id, error) from error  # LogUnavailable would say that nothing was done
        return Done(attached.task, recorded)

    def _free(self, attached: Attached) -> None:
        attached.lock.release()
        self._attached.let_go(attached)

    def _note_conflict(self, attached: Attached, conflict: WrongExpectedSequence) -> None:
        found = conflict.found
        log.info("task.append_conflict", task_id=attached.task_id, expected=conflict.expected, found=found)
        self._metrics.conflicts.inc()

    async def _execute(self, owner: Owner, task_id: TaskId, command: Command, cause: Cause) -> Done | Rejected:
        for _ in range(ROUNDS):
            async with self._attached.attach(owner, task_id) as attached, attached.lock:
                decision = decide(command, attached.task)
                if decision is None or isinstance(decision, Rejected):
                    if await self._has_moved_on(attached, command):
                        continue
                    return decision or Done(attached.task, None)
                record = record_of(decision, attached.task, command, cause)
                since = time.monotonic()
                try:
                    recorded = await self._log.append(owner, task_id, record, attached.task.sequence)
                except WrongExpectedSequence as conflict:
                    self._note_conflict(attached, conflict)
                    await self._attached.read_on(attached)
                    continue
                self._metrics.appended(recorded, time.monotonic() - since)
                return await self._take_in(attached, recorded)
        raise OutcomeUnknown(f"{task_id}: others were faster {ROUNDS} times", task_id=task_id)

    async def _has_moved_on(self, attached: Attached, command: Command) -> bool:
        """Whether a decision that writes nothing rests on an old state. No expectation proves it: the leader must.

        (A worker refused because this process had not heard yet of the user's answer would let its task lie.)
        """
        if attached.task.ended or (isinstance(command, CreateTask) and attached.task.version):
            return attached.void  # what was decided can't change any more
        version = attached.task.version
        await self._attached.read_on(attached)
        return attached.void or attached.task.version != version

    def _worked(self, work: asyncio.Task[object]) -> None:
        self._working.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            log.warning("task.command_failed", error=f"{type(error).__name__}: {error}")


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
