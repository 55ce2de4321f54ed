"""Takes work, holds the lease, runs the agent. A process of its own: an agent that crashes takes no API along."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from datetime import UTC, datetime, timedelta

import structlog

from app.agents.agent import Agent
from app.agents.catalogue import Catalogue
from app.attached import Attached
from app.commands import StartRun
from app.decide import Rejected
from app.hold import Hold, SetDown, insist
from app.metrics import Metrics, new_instance
from app.run import Run
from app.settings import LogSettings, WorkerSettings
from app.tasks import Cause, Done, Tasks
from app.tools import Tools
from eventstore.connection import Connection
from eventstore.events import TaskId
from eventstore.figures import telling
from eventstore.heartbeats import HeartbeatThread, ask_alive
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError
from eventstore.queue import Lease, Queue
from eventstore.switches import Switches

log = structlog.stdlib.get_logger()

TAKE_S = 3.0
THREADS_A_SLOT = 4
AGAIN_S = 0.2
EARLY = timedelta(seconds=1)
"""So much before its time a retry may begin: clocks differ."""


class Worker:
    """Runs up to `slots` tasks of its agents at once. Build with `open_worker`."""

    def __init__(
        self,
        connection: Connection,
        tasks: Tasks,
        queue: Queue,
        beats: HeartbeatThread,
        catalogue: Catalogue,
        switches: Switches,
        *,
        worker_id: str,
        slots: int,
    ) -> None:
        self.worker_id = worker_id
        self._connection = connection
        self._tasks = tasks
        self._queue = queue
        self._beats = beats
        self._catalogue = catalogue
        self._slots = asyncio.Semaphore(slots)
        self._held: set[TaskId] = set()
        tasks.metrics.gauge("leases_held", "Tasks that this worker holds", lambda: len(self._held))
        tasks.metrics.gauge("free_slots", "Tasks that this worker could run besides", lambda: slots - len(self._held))
        # Some may be stuck in tools of tasks that are over.
        self._tools = Tools(THREADS_A_SLOT * slots, switches)

    async def work(self) -> None:
        """Take and run until cancelled; what runs then is given back, for others to take."""
        try:
            async with asyncio.TaskGroup() as group:
                for agent in self._catalogue:
                    group.create_task(self._serve(agent, group))
        finally:
            self._tools.close()

    async def _serve(self, agent: Agent, group: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            try:
                lease = await self._queue.take(agent.name, wait_s=TAKE_S)
            except LogError as error:
                log.debug("worker.no_queue", agent=agent.name, error=str(error))
                lease = None
                await asyncio.sleep(AGAIN_S)
            except BaseException:
                self._slots.release()
                raise
            if lease is None:
                self._slots.release()
                continue
            group.create_task(self._hold(agent, lease))

    async def _hold(self, agent: Agent, lease: Lease) -> None:
        """One leased item, from its taking to its finishing or dropping."""
        finished = False
        task_id = lease.item.task_id
        # An item may come twice, also to us: a second hold would begin the same run again, beside the first.
        ours = task_id not in self._held
        try:
            if ours:
                self._held.add(task_id)
                self._beats.keep(lease)
                async with contextlib.AsyncExitStack() as stack:
                    attached = await insist(lambda: self._attach(lease, stack), lease)
                    finished = await self._run(agent, lease, attached)
        except SetDown as down:
            self._tasks.metrics.runs_set_down.labels(agent.name).inc()
            log.info("run.set_down", task_id=task_id, why=str(down))
            finished = down.finished
        except LogError as error:
            log.warning("worker.log_away", task_id=task_id, error=str(error))
        except Exception as error:
            # A bug of ours in one task must not take the others along; its item comes again.
            log.error("worker.fault", task_id=task_id, exc_info=error)
        finally:
            if ours:
                self._held.discard(task_id)
            if finished:
                # The beats go on while the ack is under way, or the item could come to another meanwhile.
                await lease.finish()
            else:
                lease.drop()
            self._beats.release(lease)
            self._slots.release()

    async def _attach(self, lease: Lease, stack: contextlib.AsyncExitStack) -> Attached:
        """The task, as the leader knows it. Raises LogError; what it attached by then is let go with the stack."""
        attached = await stack.enter_async_context(self._tasks.attach(lease.item.owner, lease.item.task_id))
        await self._tasks.refresh(attached)
        return attached

    async def _run(self, agent: Agent, lease: Lease, attached: Attached) -> bool:
        """Whether the item may leave the queue. Raises SetDown, LogError."""
        task = attached.task
        if task.version == 0 or task.ended:
            return True
        if task.status == "running":
            known_dead = lease.item.lost_run == task.run
            if not known_dead and await insist(lambda: ask_alive(self._connection, task.task_id, task.run), lease):
                # Not finished: after a server's death it may be the very item that the living holder has.
                return False
        elif not task.runnable:
            return True
        elif task.retry_at is not None and task.retry_at > datetime.now(UTC) + EARLY:
            return False  # a second item of a task that waits for its retry
        number = task.run + 1
        start = StartRun(run=number, worker=self.worker_id)
        cause = Cause(actor=f"worker/{self.worker_id}", causation_id=f"run/{number}")

        def begin() -> Awaitable[Done | Rejected]:
            return self._tasks.execute(attached.owner, attached.task_id, start, cause)

        # Given up while it may have been heard, the run would be lost before it began, and count as a failure.
        done = await insist(begin, lease)
        if isinstance(done, Rejected):
            raise SetDown(f"{done.reason}: {done.detail}", finished=done.reason == "ended")
        if done.task.status != "running" or done.task.worker != self.worker_id or done.task.run != number:
            # It was paused or ended instead; or, while this process stood still, someone else took it over: then the
            # item is theirs by now, and must not be finished.
            waits = done.task.status != "running" and not done.task.runnable
            raise SetDown(f"the task is {done.task.status}, run {done.task.run}", finished=waits)
        self._beats.hold(lease, task.task_id, number)
        self._tasks.metrics.runs.labels(agent.name).inc()
        log.info("run.began", task_id=task.task_id, run=number, agent=agent.name)
        hold = Hold(self._tasks, attached, done.task, lease, cause)
        try:
            await Run(hold, agent, self._tools).play()
        except asyncio.CancelledError:
            # We are told to stop. The run is given back, so that another worker takes the task at once, and nothing
            # counts as a failure; if the log is away, the lease does it.
            raise SetDown("the worker stops", finished=await hold.give_back()) from None
        log.info("run.ended", task_id=task.task_id, run=number, status=attached.task.status)
        return True


def new_worker_id() -> str:
    """A name that no other worker has had."""
    return new_instance()


@contextlib.asynccontextmanager
async def open_worker(
    log_settings: LogSettings, catalogue: Catalogue, settings: WorkerSettings, worker_id: str
) -> AsyncGenerator[Worker]:
    """Connect. Raises LogUnavailable, ServerTooOld."""
    connection = await Connection.open(log_settings.nats, f"tasktrail-worker {worker_id}")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(connection.close)
        event_log = await JetStreamLog.open(
            connection,
            max_bytes=log_settings.max_bytes,
            replicas=log_settings.replicas,
            joins=log_settings.joins,
        )
        stack.push_async_callback(event_log.close)
        tasks = await Tasks.open(event_log, Metrics("worker", worker_id))
        stack.push_async_callback(tasks.close)
        lease = timedelta(seconds=settings.lease_s)
        queue = await Queue.open(connection, lease=lease, replicas=log_settings.replicas)
        stack.push_async_callback(queue.close)
        beats = await HeartbeatThread.open(log_settings.nats)
        stack.push_async_callback(beats.close)
        switches = await Switches.open(connection, replicas=log_settings.replicas)
        stack.push_async_callback(switches.close)
        worker = Worker(connection, tasks, queue, beats, catalogue, switches, worker_id=worker_id, slots=settings.slots)
        await stack.enter_async_context(telling(connection, worker_id, tasks.metrics.told))
        yield worker


async def run_worker(log_settings: LogSettings, catalogue: Catalogue, settings: WorkerSettings, worker_id: str) -> None:
    """Work until cancelled. Raises LogUnavailable, ServerTooOld at the start."""
    async with open_worker(log_settings, catalogue, settings, worker_id) as worker:
        log.info("worker.ready", worker=worker_id, agents=catalogue.names, slots=settings.slots)
        await worker.work()
