"""Who should run next: the fold of all tasks that have not ended, and what to offer, hold and time. Pure."""

import heapq
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from eventstore.events import Owner, TaskId
from eventstore.log import Recorded
from projections.task import INITIAL, Task, evolve


class Offer(Struct, frozen=True, kw_only=True):
    """Put the task on the work queue. `lost_run`: the worker of this run is known to be dead."""

    owner: Owner
    task_id: TaskId
    agent: str
    lost_run: int | None = None


class Hold(Struct, frozen=True, kw_only=True):
    """The task waits for a slot: say so in the log."""

    owner: Owner
    task_id: TaskId
    limit: int


class SetTimer(Struct, frozen=True, kw_only=True):
    """Have this told when the time comes; the same again replaces it."""

    owner: Owner
    task_id: TaskId
    kind: Literal["deadline", "retry"]
    at: datetime


class ClearTimer(Struct, frozen=True, kw_only=True):
    """The timer has lost its point."""

    task_id: TaskId
    kind: Literal["deadline", "retry"]


class Suspect(Struct, frozen=True, kw_only=True):
    """The task runs, in silence: if nobody answers for this run, offer the task again and tell `offered_again`."""

    owner: Owner
    task_id: TaskId
    agent: str
    run: int


Action = Offer | Hold | SetTimer | ClearTimer | Suspect

MAX_DEAD = 1000
"""Names of dead workers that are remembered: what such a one began may come to be known after its death."""


class _Agent:
    """One agent's tasks: those in its slots (offered or running), and those that wait for one, oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.running: set[TaskId] = set()
        self.offered: dict[TaskId, datetime] = {}
        self.waiting: dict[TaskId, int] = {}
        self.line: list[tuple[int, TaskId]] = []
        self.unheld: set[TaskId] = set()

    def stand_in_line(self, task_id: TaskId, place: int) -> None:
        if task_id not in self.waiting:
            self.waiting[task_id] = place
            heapq.heappush(self.line, (place, task_id))
            self.unheld.add(task_id)

    def leave(self, task_id: TaskId) -> None:
        self.running.discard(task_id)
        self.offered.pop(task_id, None)
        self.waiting.pop(task_id, None)
        self.unheld.discard(task_id)

    @property
    def free(self) -> int:
        return self.limit - len(self.running) - len(self.offered)

    def next(self) -> TaskId | None:
        while self.line:
            _, task_id = heapq.heappop(self.line)
            if self.waiting.pop(task_id, None) is not None:
                self.unheld.discard(task_id)
                return task_id
        return None


class Board:
    """All tasks that have not ended. `begin_with` what is known of them, `take_in` each record after that in order,
    then carry out what `plan` says."""

    def __init__(self, limits: dict[str, int], *, default_limit: int = 32) -> None:
        self._limits = limits
        self._default_limit = default_limit
        self._tasks: dict[TaskId, Task] = {}
        self._places: dict[TaskId, int] = {}
        self._agents: dict[str, _Agent] = {}
        self._timers: dict[tuple[TaskId, Literal["deadline", "retry"]], SetTimer | ClearTimer] = {}
        self._dead: dict[str, None] = {}
        self._left_behind: set[TaskId] = set()
        self._offered_again: dict[TaskId, int] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def task(self, task_id: TaskId) -> Task:
        """The task as folded here; INITIAL once it has ended."""
        return self._tasks.get(task_id, INITIAL)

    def in_slots(self) -> dict[str, int]:
        """By agent, the tasks that are offered or running."""
        return {name: len(agent.running) + len(agent.offered) for name, agent in self._agents.items()}

    def begin_with(self, task: Task, place: int) -> None:
        """A task that has not ended, as the views have it; `place` is the sequence of its first record."""
        self._put(INITIAL, task, place)

    def take_in(self, recorded: Recorded) -> None:
        """One more record."""
        before = self._tasks.get(recorded.task_id, INITIAL)
        self._put(before, evolve(before, recorded), recorded.sequence)

    def _put(self, before: Task, task: Task, place: int) -> None:
        """Where a task belongs, by what it is now. What it was before says which timers are set."""
        agent = self._agent(task.agent)
        if task.imported and not task.ended:
            agent.leave(task.task_id)
            self._tasks[task.task_id] = _lean(task)
            self._places.setdefault(task.task_id, place)
            return
        self._time(INITIAL if before.imported else before, task)
        if task.ended:
            agent.leave(task.task_id)
            self._tasks.pop(task.task_id, None)
            self._places.pop(task.task_id, None)
            self._offered_again.pop(task.task_id, None)
            return
        self._tasks[task.task_id] = _lean(task)
        place = self._places.setdefault(task.task_id, place)
        if task.status == "running":
            agent.leave(task.task_id)
            agent.running.add(task.task_id)
            if task.worker in self._dead and task.run != before.run:
                self._left_behind.add(task.task_id)
        elif not task.runnable or task.unknown is not None:
            agent.leave(task.task_id)  # (what a newer release wrote on, only a newer release can begin)
        elif task.retry_at is not None and task.updated_at is not None and task.retry_at > task.updated_at:
            agent.leave(task.task_id)  # until its timer
        elif task.task_id not in agent.offered:
            agent.running.discard(task.task_id)
            agent.stand_in_line(task.task_id, place)
            if task.status == "queued":
                agent.unheld.discard(task.task_id)

    def retry_due(self, task_id: TaskId, now: datetime) -> None:
        """The retry timer of this task has fired."""
        task = self.task(task_id)
        agent = self._agent(task.agent)
        if task.runnable and task.retry_at is not None and task.retry_at <= now and task_id not in agent.offered:
            agent.stand_in_line(task_id, self._places[task_id])

    def plan(self, now: datetime) -> list[Action]:
        """What is to be done now: timers, offers into free slots, holds for those that must wait."""
        actions: list[Action] = list(self._timers.values())
        self._timers.clear()
        for agent in self._agents.values():
            while agent.free > 0 and (task_id := agent.next()) is not None:
                agent.offered[task_id] = now
                actions.append(self._offer(task_id))
            actions += [
                Hold(owner=self._tasks[task_id].owner, task_id=task_id, limit=agent.limit) for task_id in agent.unheld
            ]
            agent.unheld.clear()
        for task in (self.task(task_id) for task_id in self._left_behind):
            if task.status == "running" and task.worker in self._dead:
                actions.append(self._offer(task.task_id, lost_run=task.run))
        self._left_behind.clear()
        return actions

    def lost(self, worker: str) -> list[Action]:
        """This worker is dead: offer what it ran again, at once."""
        self._dead[worker] = None
        while len(self._dead) > MAX_DEAD:
            del self._dead[next(iter(self._dead))]
        return [
            self._offer(task.task_id, lost_run=task.run)
            for task in self._tasks.values()
            if task.status == "running" and task.worker == worker
        ]

    def offered_again(self, task_id: TaskId) -> None:
        """What was suspected is true, and there is a new item for it."""
        self._offered_again[task_id] = self.task(task_id).sequence

    def sweep(self, now: datetime, *, silent_for: timedelta, depth: dict[str, int]) -> list[Action]:
        """What may have got lost: timers that are long past; what was offered and not heard of for so long, where the
        queue (`depth`, its unfinished items by agent) holds fewer items than there are tasks in slots; and what runs
        and was not heard of for so long, once, or again where the queue lacks items."""
        since = now - silent_for
        actions: list[Action] = []
        for task in self._tasks.values():
            if task.imported:
                continue
            if task.deadline is not None and task.deadline < since and task.unknown is None:
                actions.append(_timer(task, "deadline", task.deadline))
            if task.retry_at is not None and task.retry_at <= now:
                self.retry_due(task.task_id, now)
        for name, agent in self._agents.items():
            lacking = depth.get(name, 0) < len(agent.running) + len(agent.offered)
            actions += self._suspects(agent, since, again=lacking)
            for task_id in [task_id for task_id, at in agent.offered.items() if lacking and at < since]:
                agent.offered[task_id] = now
                actions.append(self._offer(task_id))
        return actions

    def failed(self, action: Action) -> None:
        """This could not be carried out: it is planned again."""
        match action:
            case Offer(task_id=task_id, agent=name, lost_run=lost_run):
                agent = self._agent(name)
                if lost_run is not None:
                    self._left_behind.add(task_id)
                elif agent.offered.pop(task_id, None) is not None:
                    agent.stand_in_line(task_id, self._places[task_id])
            case Hold(task_id=task_id):
                agent = self._agent(self.task(task_id).agent)
                if task_id in agent.waiting:
                    agent.unheld.add(task_id)
            case SetTimer(task_id=task_id, kind=kind, at=at):
                if self._time_of(task_id, kind) == at:
                    self._timers.setdefault((task_id, kind), action)
            case ClearTimer(task_id=task_id, kind=kind):
                if self._time_of(task_id, kind) is None:  # else it would clear the one that was set since
                    self._timers.setdefault((task_id, kind), action)
            case Suspect():
                return  # the next sweep suspects it again
            case _:
                assert_never(action)

    def _agent(self, name: str) -> _Agent:
        agent = self._agents.get(name)
        if agent is None:
            agent = self._agents[name] = _Agent(self._limits.get(name, self._default_limit))
        return agent

    def _offer(self, task_id: TaskId, *, lost_run: int | None = None) -> Offer:
        task = self._tasks[task_id]
        return Offer(owner=task.owner, task_id=task_id, agent=task.agent, lost_run=lost_run)

    def _suspects(self, agent: _Agent, since: datetime, *, again: bool) -> list[Suspect]:
        return [
            Suspect(owner=task.owner, task_id=task.task_id, agent=task.agent, run=task.run)
            for task in (self._tasks[task_id] for task_id in agent.running)
            if task.updated_at is not None and task.updated_at < since
            if again or self._offered_again.get(task.task_id) != task.sequence
        ]

    def _time(self, before: Task, task: Task) -> None:
        if before.version == 0 and task.deadline is not None:
            self._timers[task.task_id, "deadline"] = _timer(task, "deadline", task.deadline)
        if task.retry_at is not None and task.retry_at != before.retry_at:
            self._timers[task.task_id, "retry"] = _timer(task, "retry", task.retry_at)
        elif before.retry_at is not None and task.retry_at is None:
            self._clear(task.task_id, "retry")
        if task.ended and task.deadline is not None:
            self._clear(task.task_id, "deadline")

    def _clear(self, task_id: TaskId, kind: Literal["deadline", "retry"]) -> None:
        if self._timers.pop((task_id, kind), None) is None:
            self._timers[task_id, kind] = ClearTimer(task_id=task_id, kind=kind)

    def _time_of(self, task_id: TaskId, kind: Literal["deadline", "retry"]) -> datetime | None:
        task = self.task(task_id)
        return task.deadline if kind == "deadline" else task.retry_at


def _timer(task: Task, kind: Literal["deadline", "retry"], at: datetime) -> SetTimer:
    return SetTimer(owner=task.owner, task_id=task.task_id, kind=kind, at=at)


def _lean(task: Task) -> Task:
    """Without what the board has no use for: inputs and texts may be large, and it holds every task that lives."""
    if task.input is None and not (task.text or task.step_text or task.metadata):
        return task
    return replace(task, input=None, metadata={}, text="", step_text="")
