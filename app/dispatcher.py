"""Carries out what `projections.dispatch` plans: offers work, holds it, sets and fires timers. One leads at a time."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import assert_never

import structlog

from app.commands import QueueTask, TimeOutTask
from app.decide import Rejected
from app.tasks import Cause, Tasks
from eventstore import codec
from eventstore.codec import Unreadable
from eventstore.connection import Connection
from eventstore.heartbeats import ask_alive
from eventstore.log import Arrival, BadSubject, LogError
from eventstore.queue import Queue, WorkItem, on_lost
from eventstore.replay import take_through
from eventstore.timers import DueTimer, Timer, Timers
from projections.checkpoint import is_of
from projections.dispatch import Action, Board, ClearTimer, Hold, Offer, SetTimer, Suspect
from projections.task import INITIAL, Task
from projections.views import Views
from projections.views_errors import ViewsUnavailable

log = structlog.stdlib.get_logger()

CAUSE = Cause(actor="dispatcher")
AT_ONCE = 64
"""Actions under way at the same time."""
AGAIN_S = 0.2
TAKE_S = 2.0
CLEAN_EVERY_S = 3600.0
VIEWS_WITHIN_S = 10.0
"""What a term waits for the views before it reads the whole log instead."""


class Dispatcher:
    """Built once; leads whenever it is elected. Correctness never rests on it: it may offer twice, or late."""

    def __init__(
        self,
        connection: Connection,
        tasks: Tasks,
        queue: Queue,
        timers: Timers,
        views: Views | None,
        *,
        limits: dict[str, int],
        default_limit: int,
        sweep_s: float,
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._queue = queue
        self._timers = timers
        self._views = views
        self._another = asyncio.Event()
        self._limits = limits
        self._default_limit = default_limit
        self._sweep_s = sweep_s
        self._board = Board(limits, default_limit=default_limit)
        self._woken = asyncio.Event()
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._lost: list[str] = []
        self._leads = False
        self._live: Counter[tuple[str, ...]] = Counter()
        self._wanting: Counter[str] = Counter()
        self._depth: dict[str, int] = {}
        self._show_figures()

    async def lead(self) -> None:
        """Fold the log, then act on what comes, until cancelled. Raises LogError where it can't begin."""
        heard = await on_lost(self._connection, self._on_lost)
        try:
            while True:
                await self._lead_one_life()
        finally:
            await self._connection.unsubscribe(heard)

    async def _lead_one_life(self) -> None:
        """The same, until the log is another one."""
        self._begin_anew()
        # Anew as well: an action that was cancelled before its first line never gave back its place.
        self._at_once = asyncio.Semaphore(AT_ONCE)
        checkpoint = await self._begin_with_views()
        tail = await self._tasks.log.tail(self._on_arrival, self._on_reset, after=await self._read_on(checkpoint))
        try:
            await tail.catch_up()
            self._leads = True
            log.info("dispatcher.leads", tasks=len(self._board), checkpoint=checkpoint, position=tail.position)
            async with asyncio.TaskGroup() as group:
                working = [
                    group.create_task(work)
                    for work in (self._plan(group), self._sweep(group), self._fire(), self._clean())
                ]
                await self._another.wait()
                for one in working:
                    one.cancel()
        finally:
            self._leads = False
            await tail.close()

    async def _begin_with_views(self) -> int:
        """Take over what the views have folded already, if they are of this log: the log is read on from there. Else
        from its beginning, 0. Raises LogUnavailable."""
        if self._views is None:
            return 0
        board = Board(self._limits, default_limit=self._default_limit)
        try:
            async with asyncio.timeout(VIEWS_WITHIN_S):
                checkpoint = await self._views.living(board.begin_with)
        except (ViewsUnavailable, TimeoutError) as error:
            log.info("dispatcher.without_views", why=str(error) or "they are too slow")
            return 0
        if not await is_of(self._tasks.log, checkpoint, end=await self._tasks.log.last_sequence()):
            log.info("dispatcher.without_views", why="they are of another log")
            return 0
        self._board = board
        for task in board:
            self._count(INITIAL, task)
        return checkpoint.sequence

    async def _read_on(self, checkpoint: int) -> int:
        """Take in what the log has beyond this, at our pace (pushed, it would keep the term's renewals waiting).
        How far. Raises LogUnavailable, LogIsAnother."""
        replay = await self._tasks.log.replay(after=checkpoint)
        try:
            async for arrivals in take_through(replay, await self._tasks.log.last_sequence()):
                for arrival in arrivals:
                    self._on_arrival(arrival)
            return replay.position
        finally:
            await replay.close()

    def _begin_anew(self) -> None:
        self._another.clear()
        self._board = Board(self._limits, default_limit=self._default_limit)
        self._live.clear()
        self._wanting.clear()
        self._woken.set()

    def _on_reset(self) -> None:
        # The tail goes on from where it began, which means nothing in another log: what it brings is passed over.
        self._another.set()

    def _on_arrival(self, arrival: Arrival) -> None:
        if self._another.is_set() or not arrival.subject.startswith("tasks."):
            return
        try:
            recorded = codec.recorded(arrival)
        except Unreadable as error:
            log.error("dispatcher.unreadable", sequence=arrival.sequence, error=str(error))
            return
        before = self._board.task(recorded.task_id)
        self._board.take_in(recorded)
        self._count(before, self._board.task(recorded.task_id))
        self._woken.set()

    def _on_lost(self, worker: str) -> None:
        self._lost.append(worker)
        self._woken.set()

    async def _plan(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            lost, self._lost = self._lost, []
            actions = self._board.plan(datetime.now(UTC))
            for worker in lost:
                again = self._board.lost(worker)
                log.info("dispatcher.worker_lost", worker=worker, tasks=len(again))
                actions += again
            await self._begin(actions, group)

    async def _begin(self, actions: list[Action], group: asyncio.TaskGroup) -> None:
        for action in actions:
            await self._at_once.acquire()
            group.create_task(self._carry_out(action))

    async def _carry_out(self, action: Action) -> None:
        try:
            match action:
                case Offer(owner=owner, task_id=task_id, agent=agent, lost_run=lost_run):
                    await self._queue.offer(WorkItem(owner=owner, task_id=task_id, agent=agent, lost_run=lost_run))
                    self._tasks.metrics.offers.labels(agent).inc()
                case Hold(owner=owner, task_id=task_id, limit=limit):
                    await self._tasks.execute(owner, task_id, QueueTask(limit=limit), CAUSE)
                case SetTimer(owner=owner, task_id=task_id, kind=kind, at=at):
                    await self._timers.set(Timer(owner=owner, task_id=task_id, kind=kind, at=at))
                case ClearTimer(task_id=task_id, kind=kind):
                    await self._timers.clear(task_id, kind)
                case Suspect(owner=owner, task_id=task_id, agent=agent, run=run):
                    if not await ask_alive(self._connection, task_id, run):
                        self._tasks.metrics.sweeps.inc()
                        log.info("dispatcher.swept", task_id=task_id, run=run)
                        # Without `lost_run`: whoever takes it asks once more, after a while.
                        await self._queue.offer(WorkItem(owner=owner, task_id=task_id, agent=agent))
                        self._board.offered_again(task_id)
                case _:
                    assert_never(action)
        except (BadSubject, Unreadable) as error:
            log.error("dispatcher.impossible", action=type(action).__name__, task_id=action.task_id, error=str(error))
        except LogError as error:
            log.warning("dispatcher.not_yet", action=type(action).__name__, error=str(error))
            self._board.failed(action)
            self._wake_later()
        finally:
            self._at_once.release()

    def _wake_later(self) -> None:
        asyncio.get_running_loop().call_later(AGAIN_S, self._woken.set)

    async def _sweep(self, group: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self._sweep_s)
            try:
                depth = await self._queue.depth()
            except LogError as error:
                log.warning("dispatcher.no_sweep", error=str(error))
                continue
            doubtful = self._board.sweep(datetime.now(UTC), silent_for=2 * self._queue.lease, depth=depth)
            await self._begin(doubtful, group)
            self._woken.set()

    async def _clean(self) -> None:
        while True:
            try:
                await self._tasks.log.sweep_blobs()
            except LogError as error:
                log.warning("dispatcher.no_cleaning", error=str(error))
            await asyncio.sleep(CLEAN_EVERY_S)

    async def _fire(self) -> None:
        while True:
            try:
                due = await self._timers.take(wait_s=TAKE_S)
                if due is not None:
                    await self._act_on(due)
            except LogError as error:
                log.warning("dispatcher.timers_away", error=str(error))
                await asyncio.sleep(AGAIN_S)

    async def _act_on(self, due: DueTimer) -> None:
        timer = due.timer
        self._tasks.metrics.timers_fired.labels(timer.kind).inc()
        if timer.kind == "retry":
            self._board.retry_due(timer.task_id, max(datetime.now(UTC), timer.at))
            self._woken.set()
        else:
            decided = await self._tasks.execute(
                timer.owner, timer.task_id, TimeOutTask(deadline=timer.at), Cause(actor="timer")
            )
            if isinstance(decided, Rejected):
                log.debug("dispatcher.timer_moot", task_id=timer.task_id, reason=decided.reason)
        await due.done()

    # --- what a person on call sees ------------------------------------------------------------------------------

    async def told(self) -> bytes:
        """Our figures; the queue's depth is asked for first."""
        try:
            self._depth = await self._queue.depth() if self._leads else {}
        except LogError as error:
            log.debug("dispatcher.depth_unknown", error=str(error))
            self._depth = {}
        return await self._tasks.metrics.told()

    def _show_figures(self) -> None:
        metrics, agent = self._tasks.metrics, ("agent",)
        metrics.gauge("dispatcher_leads", "1: this projector hands out the work; 0: it stands by", lambda: self._leads)
        metrics.gauge_by("live_tasks", "Tasks that have not ended", ("agent", "status"), self._led_live)
        metrics.gauge_by("tasks_in_slots", "Tasks that are offered or running", agent, self._led_in_slots)
        metrics.gauge_by(
            "tasks_waiting", "Tasks that could run but wait for a slot or a retry", agent, self._led_waiting
        )
        metrics.gauge_by("queue_depth", "Unfinished items of the work queue", agent, lambda: _by_agent(self._depth))

    def _count(self, before: Task, task: Task) -> None:
        for one, by in ((before, -1), (task, 1)):
            if one.version:
                self._live[one.agent, one.status] += by
                self._wanting[one.agent] += by if one.runnable or one.status == "running" else 0

    def _led_live(self) -> Mapping[tuple[str, ...], float]:
        return self._live if self._leads else {}

    def _led_in_slots(self) -> Mapping[tuple[str, ...], float]:
        return _by_agent(self._board.in_slots()) if self._leads else {}

    def _led_waiting(self) -> Mapping[tuple[str, ...], float]:
        taken = self._board.in_slots()
        waiting = {agent: count - taken.get(agent, 0) for agent, count in self._wanting.items()}
        return _by_agent(waiting) if self._leads else {}


def _by_agent(counts: Mapping[str, int]) -> Mapping[tuple[str, ...], float]:
    return {(agent,): count for agent, count in counts.items()}
