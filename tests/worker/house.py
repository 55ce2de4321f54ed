"""A deployment for tests: a dispatcher and workers in this process or their own, and a client's room to see them by."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
from msgspec import Struct

from app.agents.agent import Agent
from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.commands import CancelTask, Command, CreateTask
from app.decide import Rejected
from app.metrics import Metrics
from app.projecting import run_projector
from app.settings import AgentSettings, LogSettings, WorkerSettings
from app.tasks import Cause, Done, Tasks
from app.worker import new_worker_id, run_worker
from eventstore.connection import Connection, NatsAddress
from eventstore.events import Json, Owner, TaskFact, TaskId, TaskStarted, UnknownFact, tag_of
from eventstore.jetstream import JetStreamLog
from eventstore.log import LogError, Recorded
from eventstore.server import EmbeddedServer
from projections.task import Status, Task

ANN = Owner("ann")
CAUSE = Cause(actor="ann")
SOON_S = 30.0
"""What a test waits for at most: a bound for a machine that is busy with something else, not a promise."""
CALM = WorkerSettings(lease_s=20.0, sweep_s=60.0)
"""Nothing is late, nothing is swept: what happens does not rest on either."""
HASTY = WorkerSettings(lease_s=1.5, sweep_s=0.5)
"""What lets a lost lease, or the sweep, be seen soon."""


class House:
    """Build with `opened`. All that it starts ends with it."""

    def __init__(self, nats: NatsAddress, log: JetStreamLog, tasks: Tasks, connection: Connection) -> None:
        self.settings = LogSettings(nats=nats)
        self.connection = connection
        self.tasks = tasks
        self.log = log
        self._running: list[asyncio.Task[None]] = []
        self._children: list[Child] = []

    def dispatch(
        self,
        settings: WorkerSettings = CALM,
        *,
        limit: int = 32,
        limits: dict[str, int] | None = None,
        views_url: str | None = None,
    ) -> asyncio.Task[None]:
        """A dispatcher in this process, which carries the views too if it is told where they are."""
        return self._start(run_projector(self.settings, AgentSettings(limit=limit), settings, limits, views_url))

    def work(self, *agents: Agent, settings: WorkerSettings = CALM, worker_id: str | None = None) -> asyncio.Task[None]:
        """A worker in this process; of the simulator, if no agent is named."""
        chosen = list(agents) or [Simulator()]
        catalogue = Catalogue(chosen, default=chosen[0].name)
        return self._start(run_worker(self.settings, catalogue, settings, worker_id or new_worker_id()))

    async def spawn(
        self, *, settings: WorkerSettings = CALM, effects: Path | None = None, dispatcher: bool = False
    ) -> "Child":
        """A worker of the simulator, or a dispatcher, in a process of its own, which says that it is ready."""
        child = await Child.start(self.settings.nats, settings, effects, dispatcher=dispatcher)
        self._children.append(child)
        return child

    async def submit(self, *steps: Json, command: CreateTask | None = None) -> TaskId:
        """A new task, for the simulator, of these steps; or whatever the command says."""
        command = command or CreateTask(agent="simulator", fingerprint="f", input={"steps": list(steps)})
        done = await self.tasks.create(ANN, command, CAUSE)
        assert isinstance(done, Done), done
        return done.task.task_id

    async def tell(self, task_id: TaskId, command: Command) -> Done | Rejected:
        """A command to a task, repeated until its outcome is known."""
        async with asyncio.timeout(SOON_S):
            while True:
                try:
                    return await self.tasks.execute(ANN, task_id, command, CAUSE)
                except LogError:
                    await asyncio.sleep(0.05)

    async def reach(self, task_id: TaskId, wanted: Status | Callable[[Task], bool]) -> Task:
        """The task once it is so. Fails where it ends otherwise, or is not so soon."""

        def fits(task: Task) -> bool:
            return wanted(task) if callable(wanted) else task.status == wanted

        until = time.monotonic() + SOON_S
        task = Task()
        while (left_s := until - time.monotonic()) > 0:
            try:
                async with self.tasks.attach(ANN, task_id) as attached:
                    await attached.until(lambda task: fits(task) or task.ended, left_s)
                    task = attached.task
            except LogError:
                await asyncio.sleep(0.05)
                continue
            if fits(task):
                return task
            assert not task.ended, f"it ended as {task.status}: {task.error}\n{await self.tags(task_id)}"
        raise AssertionError(f"not within {SOON_S:g} s; it is {task.status}\n{await self.tags(task_id)}")

    async def records(self, task_id: TaskId) -> list[Recorded]:
        """What the log holds of a task, by the leader's word complete."""
        async with asyncio.timeout(SOON_S):
            while True:
                try:
                    return await self.log.read(ANN, task_id)
                except LogError:
                    await asyncio.sleep(0.05)

    async def facts(self, task_id: TaskId) -> list[TaskFact | UnknownFact]:
        """The task's history."""
        return [recorded.record.fact for recorded in await self.records(task_id)]

    async def tags(self, task_id: TaskId) -> list[str]:
        """The task's history, as the names of its facts without `task.`."""
        return [tag_of(fact).removeprefix("task.") for fact in await self.facts(task_id)]

    async def starts(self, task_id: TaskId) -> list[tuple[int, bool]]:
        """Its runs, and whether each began because the one before was lost."""
        return [(fact.run, fact.lost) for fact in await self.facts(task_id) if isinstance(fact, TaskStarted)]

    async def offered(self, agent: str) -> None:
        """Return once there is an item for this agent on the queue."""
        async with asyncio.timeout(SOON_S):
            while True:
                with contextlib.suppress(LogError):
                    body = await self.connection.api("STREAM.INFO.WORK", {"subjects_filter": f"work.{agent}"})
                    if f"work.{agent}" in str(body):
                        return
                await asyncio.sleep(0.02)

    async def cancel(self, *task_ids: TaskId) -> None:
        """End them, so that nothing runs on."""
        for task_id in task_ids:
            await self.tell(task_id, CancelTask(by="ann"))

    def _start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        running = asyncio.create_task(work)
        self._running.append(running)
        return running

    async def stop(self, running: asyncio.Task[None]) -> None:
        """End what `dispatch` or `work` began, as a process that is told to stop. Its failure fails the test."""
        self._running.remove(running)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def close(self) -> None:
        """End all that is left."""
        for child in self._children:
            await child.kill()
        for running in list(self._running):
            await self.stop(running)


class Place(Struct):
    """A house on a server of its own, and what may delete its streams."""

    house: House
    archive: Connection
    server: EmbeddedServer

    async def forget_work(self) -> None:
        """All that is queued and timed is lost."""
        for stream in ("WORK", "TIMERS"):
            await self.archive.api(f"STREAM.DELETE.{stream}")


@contextlib.asynccontextmanager
async def opened(nats: NatsAddress) -> AsyncGenerator[House]:
    """A house without inhabitants."""
    async with AsyncExitStack() as stack:
        connection = await Connection.open(nats, "tests")
        stack.push_async_callback(connection.close)
        log = await JetStreamLog.open(connection)
        stack.push_async_callback(log.close)
        tasks = await Tasks.open(log, Metrics())
        stack.push_async_callback(tasks.close)
        house = House(nats, log, tasks, connection)
        stack.push_async_callback(house.close)
        yield house


class Child:
    """A process of its own, for tests that stop or kill it."""

    def __init__(self, process: Process, name: str) -> None:
        self.name = name
        self._process = process
        self._events: list[str] = []
        self._said = asyncio.Condition()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(
        cls, nats: NatsAddress, settings: WorkerSettings, effects: Path | None, *, dispatcher: bool
    ) -> "Child":
        """Return once it works, or leads (or stands by)."""
        name = "dispatcher" if dispatcher else new_worker_id()
        asked = msgspec.json.encode([nats.url, name, msgspec.to_builtins(settings), str(effects) if effects else None])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.worker.child", asked.decode(), stderr=PIPE
        )
        child = cls(process, name)
        await child.says("election.stands" if dispatcher else "worker.ready")
        return child

    def signal(self, number: signal.Signals) -> None:
        """Stop it, let it go on, kill it."""
        os.kill(self._process.pid, number)

    async def says(self, event: str) -> None:
        """Return once it has logged this event."""
        async with asyncio.timeout(SOON_S), self._said:
            await self._said.wait_for(lambda: event in self._events)

    async def dies(self) -> None:
        """Return once it is dead."""
        await asyncio.wait_for(self._process.wait(), SOON_S)

    async def kill(self) -> None:
        """SIGKILL it, if it lives."""
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)
        await self._process.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            sys.stderr.write(f"{self.name}: {line.decode()}")
            with contextlib.suppress(msgspec.MsgspecError):
                event = msgspec.json.decode(line, type=dict[str, Json]).get("event")
                async with self._said:
                    self._events.append(str(event))
                    self._said.notify_all()
