"""A worker's hold on one task: its commands said under the lease, the task as last heard of, its recorded steps."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from app.agents.agent import Exchange, File, Step, StepFailed, kind_of
from app.attached import Attached
from app.commands import FailRun, FinishStep, PauseTask, WorkerCommand
from app.decide import Rejected
from app.exchanges import exchanges
from app.tasks import Cause, Done, Tasks
from eventstore.events import FileReference, Json, Problem, Usage
from eventstore.log import LogError, LogFull, LogUnavailable, OutcomeUnknown
from eventstore.queue import Lease
from projections.steps import Steps
from projections.task import Task

log = structlog.stdlib.get_logger()

AGAIN_S = 0.1
READ_WITHIN_S = 5.0
GIVE_BACK_WITHIN_S = 3.0
FOREVER_S = 10 * 365 * 86_400.0
STOPPED = Problem(code="worker_stopped", message="its worker was told to stop")
Wanted = TypeVar("Wanted")


class SetDown(Exception):
    """This run goes no further. `finished`: its item may leave the queue; else it is dropped, unsaid."""

    def __init__(self, why: str, *, finished: bool) -> None:
        super().__init__(why)
        self.finished = finished


class Hold:
    """From a `TaskStarted`, after which the task is as `begun`, to the set-down or end of this run."""

    def __init__(self, tasks: Tasks, attached: Attached, begun: Task, lease: Lease, cause: Cause) -> None:
        self.task_id = begun.task_id
        self.run = begun.run
        self.lease = lease
        self.steps = Steps()
        self._tasks = tasks
        self._attached = attached
        self._heard = begun
        self._cause = cause
        self._seen = 0

    @property
    def task(self) -> Task:
        """The task as last heard of: by the tail or, where what is attached has become void, by our own appends."""
        live = self._attached.task
        return live if live.sequence > self._heard.sequence else self._heard

    async def large_fields(self) -> dict[str, object]:
        """The fields of the task that are too big for its view, fetched. Raises SetDown."""
        return await insist(lambda: self._tasks.large_fields(self.task), self.lease)

    async def conversation(self) -> tuple[Exchange, ...]:
        """What was said in the task's conversation before it: the same in every run. Raises SetDown."""
        return await insist(lambda: exchanges(self._tasks, self.task), self.lease)

    def file(self, reference: FileReference) -> File:
        """A file that came with the task, as its agent is given it."""

        async def read() -> bytes:
            content = await insist(lambda: self._tasks.log.blobs.get(reference.blob), self.lease)
            if content is None:
                raise StepFailed("file_missing", f"{reference.name} is not in the store any more")
            return content

        return File(
            name=reference.name,
            media_type=reference.media_type,
            size=reference.bytes,
            sha256=reference.sha256,
            read=read,
        )

    async def read_on(self) -> None:
        """Take in all facts that are known to be there. Raises SetDown."""
        await insist(self._read_on, self.lease)

    def count_failure(self, agent: str) -> None:
        """For whoever watches the metrics: this run broke."""
        self._tasks.metrics.failed_runs.labels(agent).inc()

    async def may_begin(self) -> None:
        """A step begins only under a live lease, and not while a pause is wished for."""
        if not self.lease.alive():
            raise SetDown("the lease is late", finished=False)
        if self.task.pause_requested:
            done = await self._execute(PauseTask(run=self.run))
            if isinstance(done, Rejected) and done.reason == "not_waiting":
                return  # the wish was taken back meanwhile
            self._judge(done, ending=True)
            raise SetDown("paused", finished=True)

    async def say(self, command: WorkerCommand, *, ending: bool = False) -> Done:
        """Execute; not heard any more: SetDown. `ending`: the command may itself set the task down or end it."""
        return self._judge(await self._execute(command), ending=ending)

    async def give_back(self) -> bool:
        """Let the task go for another worker to run; whether it was heard, within a short while."""
        back = FailRun(run=self.run, error=STOPPED, counts=False)
        try:
            async with asyncio.timeout(GIVE_BACK_WITHIN_S):
                await self.say(back, ending=True)
        except (SetDown, LogError, TimeoutError):
            return False
        return True

    async def note(
        self, number: int, step: Step, digest: str, output: Json, *, took: float = 0.0, usage: Usage | None = None
    ) -> None:
        """Record a step that does not act on the world, by its answer."""
        note = FinishStep(
            run=self.run,
            step=number,
            kind=kind_of(step),
            output=output,
            input_sha256=digest,
            took=took,
            usage=usage,
        )
        await self.say(note)

    async def over(self) -> None:
        """Return when the task has ended, or someone else runs it."""
        await self.sleep(FOREVER_S)

    async def sleep(self, seconds: float) -> None:
        """Wait; not for a task that ended, or that someone else runs."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            try:
                # Attached anew: what was attached may have become void, and then says nothing any more.
                async with self._tasks.attach(self._attached.owner, self._attached.task_id) as attached:
                    await attached.until(lambda task: task.ended or task.run != self.run, left_s)
                    if not attached.void:
                        return
            except LogError:
                await asyncio.sleep(min(left_s, AGAIN_S))

    async def _execute(self, command: WorkerCommand) -> Done | Rejected:
        def execute() -> Awaitable[Done | Rejected]:
            return self._tasks.execute(self._attached.owner, self._attached.task_id, command, self._cause)

        # What was done is worth writing even under a late lease: if the run was taken over, it is refused.
        done = await insist(execute, self.lease, even_late=isinstance(command, FinishStep))
        if isinstance(done, Done):
            self._heard = done.task
        return done

    def _judge(self, done: Done | Rejected, *, ending: bool) -> Done:
        if isinstance(done, Rejected):
            raise SetDown(f"{done.reason}: {done.detail}", finished=done.reason == "ended")
        if not ending and (done.task.status != "running" or done.task.run != self.run):
            raise SetDown(f"the task is {done.task.status}", finished=done.task.run == self.run)
        return done

    async def _read_on(self) -> None:
        """Take in all facts that are known to be there. A replica that is behind would else make recorded steps run
        again, and the inbox be read twice. Raises LogUnavailable."""
        up_to = self.task.sequence
        until = time.monotonic() + READ_WITHIN_S
        while True:
            async for sequence, fact in self._tasks.whole_facts(self._attached, after=self._seen):
                self.steps.take_in(fact)
                self._seen = sequence
            if self._seen >= up_to:
                return
            if time.monotonic() >= until:
                raise LogUnavailable(f"{self._attached.task_id}: no replica has record {up_to}")
            await asyncio.sleep(AGAIN_S)


async def insist(work: Callable[[], Awaitable[Wanted]], lease: Lease, *, even_late: bool = False) -> Wanted:
    """Do it again while the log is away and the lease is ours; it must be harmless to do twice. Raises SetDown."""
    while True:
        try:
            return await work()
        except (OutcomeUnknown, LogUnavailable, LogFull) as error:
            if not lease.alive() and not even_late:
                raise SetDown("the log is away, and the lease late", finished=False) from error
            log.info("run.insists", task_id=lease.item.task_id, error=str(error))
        await asyncio.sleep(AGAIN_S)
