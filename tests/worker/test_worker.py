"""Workers that die, stall and come back; items that come twice or not at all: every step once, every task one end."""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from app.agents.agent import Act, Brief, Work, ask, call_tool, say
from app.agents.simulator import Simulator
from app.commands import CreateTask, FailRun, FinishStep, StartRun, StartStep
from app.settings import WorkerSettings
from eventstore.events import Json, Problem, TaskId, TaskStarted
from eventstore.heartbeats import ask_alive
from eventstore.queue import Queue, WorkItem, announce_lost
from tests.worker.agents import STEPS, Gate, Own, acted, acts_twice, told
from tests.worker.house import ANN, CALM, HASTY, SOON_S, House, opened


async def offer(house: House, task_id: TaskId, *, agent: str = "own", lost_run: int | None = None) -> None:
    """One more item for this task."""
    queue = await Queue.open(house.connection)
    await queue.offer(WorkItem(owner=ANN, task_id=task_id, agent=agent, lost_run=lost_run))
    await queue.close()


async def depth(house: House) -> int:
    queue = await Queue.open(house.connection)
    depth = sum((await queue.depth()).values())
    await queue.close()
    return depth


async def empty(house: House) -> None:
    """Return once nothing is on the queue: whatever was there twice has gone, too."""
    async with asyncio.timeout(SOON_S):
        while await depth(house):  # noqa: ASYNC110  # the server does not say when
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_item_that_comes_twice_is_run_once(house: House, workers: int) -> None:
    """Also by one worker with several slots: it must not begin its own run a second time."""
    gate, after = Gate(), list[str]()
    for n in range(workers):
        house.work(acts_twice(gate, after), settings=HASTY, worker_id=f"w{n}")
    task_id = await house.submit(command=told())
    for _ in range(4):
        await offer(house, task_id)
    await gate.acting.wait()
    assert await ask_alive(house.connection, task_id, 1)
    await offer(house, task_id)
    await asyncio.sleep(2.0)  # longer than the lease: all of them have come round
    gate.let.set()
    task = await house.reach(task_id, "completed")
    assert (task.run, task.failures, gate.acted, after) == (1, 0, 1, [f"{task_id}:1"])
    await empty(house)


async def test_a_second_item_does_not_begin_a_retry_before_its_time(house: House) -> None:
    broken: list[float] = []

    def work(_: Brief) -> Work:
        yield from say("hm")
        if len(broken) < 2:
            broken.append(time.monotonic())
            raise OSError("not yet")
        return "at last"

    house.dispatch(HASTY)
    house.work(Own(work), settings=HASTY)
    task_id = await house.submit(command=told())
    await house.reach(task_id, lambda task: task.failures == 2)
    await offer(house, task_id)
    task = await house.reach(task_id, "completed")
    assert task.run == 3
    assert task.started_at is not None
    begun = [one.record.at for one in await house.records(task_id) if isinstance(one.record.fact, TaskStarted)]
    assert (begun[2] - begun[1]).total_seconds() > 1.0  # its retry was due after 2 s, give or take a fifth
    await empty(house)


async def test_a_zombie_writes_nothing_more_and_leaves_its_successors_item_alone(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.dispatch(HASTY)
    zombie = await house.spawn(settings=HASTY, effects=effects)
    task_id = await house.submit(*STEPS, {"sleep": 3600})
    await house.reach(task_id, lambda task: task.steps == 1)
    zombie.signal(signal.SIGSTOP)
    house.work(Simulator(effects=effects), settings=HASTY, worker_id="successor")
    taken_over = await house.reach(task_id, lambda task: task.run == 2)
    assert (taken_over.worker, taken_over.failures) == ("successor", 1)
    zombie.signal(signal.SIGCONT)
    await zombie.says("run.set_down")
    await house.reach(task_id, lambda task: task.steps == 5)
    assert await depth(house) >= 1  # the zombie has not finished it
    records = await house.records(task_id)
    at = next(n for n, one in enumerate(records) if isinstance(one.record.fact, TaskStarted) and one.record.fact.lost)
    assert {one.record.actor for one in records[at:]} == {"worker/successor"}
    assert await house.starts(task_id) == [(1, False), (2, True)]
    # The step in hand when it stopped may have run twice; no recorded one has.
    twice = [step for step, times in acted(effects).items() if times > 1]
    assert len(twice) <= 1
    await house.cancel(task_id)


async def test_a_zombies_run_is_not_kept_alive_by_it(house: House) -> None:
    """Its heartbeats stop for good with its lease: when its successor dies too, a third comes to its turn."""
    house.dispatch(CALM)
    zombie = await house.spawn(settings=HASTY)
    task_id = await house.submit({"sleep": 3600})
    await house.reach(task_id, "running")
    zombie.signal(signal.SIGSTOP)
    second = await house.spawn(settings=HASTY)
    await house.reach(task_id, lambda task: task.run == 2)
    zombie.signal(signal.SIGCONT)
    await zombie.says("run.set_down")
    await second.kill()
    third = await house.reach(task_id, lambda task: task.run == 3)
    assert third.worker == zombie.name  # it lives, and may take what comes: as a new run
    await house.cancel(task_id)


async def test_a_worker_that_is_known_to_be_dead_is_replaced_at_once(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.dispatch(CALM)
    first = await house.spawn(settings=CALM, effects=effects)
    task_id = await house.submit({"tool": "once"}, {"tool": "again", "takes": 1.0}, {"complete": "done"})
    await house.reach(task_id, lambda task: task.steps == 1 and task.in_hand is not None)
    await first.kill()
    house.work(Simulator(effects=effects))
    began = time.monotonic()
    await announce_lost(house.connection, first.name)
    task = await house.reach(task_id, "completed")
    assert time.monotonic() - began < CALM.lease_s / 2
    assert (task.run, task.failures) == (2, 1)
    assert acted(effects)[f"{task_id} {task_id}:0"] == 1
    assert await house.starts(task_id) == [(1, False), (2, True)]


async def test_a_worker_that_dies_unseen_is_replaced_when_its_lease_is_over(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.dispatch(CALM)
    first = await house.spawn(settings=HASTY, effects=effects)
    task_ids = [await house.submit(*STEPS, {"complete": "done"}) for _ in range(4)]
    for task_id in task_ids:
        await house.reach(task_id, lambda task: task.steps >= 1)
    await first.kill()
    house.work(Simulator(effects=effects), settings=HASTY)
    for task_id in task_ids:
        assert (await house.reach(task_id, "completed")).run == 2
    assert sum(acted(effects).values()) <= len(task_ids) * (len(STEPS) + 1)


async def test_a_task_that_kills_its_worker_again_and_again_fails_in_the_end(house: House) -> None:
    task_id = await house.submit(command=told(max_failures=2))
    await house.tell(task_id, StartRun(run=1, worker="dead"))
    await house.tell(task_id, StartRun(run=2, worker="dead"))
    await offer(house, task_id)
    house.work(acts_twice(Gate(), []), settings=HASTY)
    task = await house.reach(task_id, "failed")
    assert task.error is not None
    assert task.error.code == "too_many_failures"
    await empty(house)


async def test_an_agent_that_blocks_its_worker_for_longer_than_the_lease_keeps_it(house: House) -> None:
    """Others take what is offered again, and hear that the run is alive, from a thread that nobody blocks."""

    def work(_: Brief) -> Work:
        yield from say("hm")
        time.sleep(HASTY.lease_s * 2)
        yield from say("there")
        return "still mine"

    async def rival() -> list[str]:
        async with opened(house.settings.nats) as other:
            other.dispatch(HASTY)
            other.work(Own(work), settings=HASTY, worker_id="rival")
            for _ in range(2):
                await offer(other, task_id)
            await other.reach(task_id, "completed")
            return await other.tags(task_id)

    task_id = await house.submit(command=told())
    await offer(house, task_id)
    house.work(Own(work), settings=HASTY, worker_id="blocked")
    await house.reach(task_id, "running")
    # In a thread, with a loop of its own: this one is blocked.
    tags = await asyncio.to_thread(asyncio.run, rival())
    assert tags == ["created", "started", "partial", "step_finished", "partial", "step_finished", "completed"]
    assert await house.starts(task_id) == [(1, False)]


async def test_two_workers_share_the_work_and_no_step_runs_twice(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.dispatch(CALM)
    settings = WorkerSettings(slots=4, lease_s=20.0)
    children = [await house.spawn(settings=settings, effects=effects) for _ in range(2)]
    task_ids = [await house.submit({"tool": "a", "takes": 0.1}, {"tool": "b", "takes": 0.1}) for _ in range(24)]
    workers: Counter[str] = Counter()
    for task_id in task_ids:
        assert (await house.reach(task_id, "completed")).run == 1
        [started] = [fact for fact in await house.facts(task_id) if isinstance(fact, TaskStarted)]
        workers[started.worker] += 1
    assert set(workers) == {child.name for child in children}
    assert acted(effects) == {f"{id} {id}:{step}": 1 for id in task_ids for step in (0, 1)}


async def test_what_is_on_record_is_not_acted_again_by_whoever_goes_on(house: House) -> None:
    reached: list[str] = []

    def act(told: Act) -> Json:
        reached.append(told.idempotency_key)
        return "new"

    def work(_: Brief) -> Work:
        first = yield from call_tool("first", None, act)
        second = yield from call_tool("second", None, act)
        return f"{first} {second}"

    task_id = await house.submit(command=told())
    await house.tell(task_id, StartRun(run=1, worker="dead"))
    await house.tell(task_id, StartStep(run=1, step=0, kind="tool", name="first"))
    await house.tell(task_id, FinishStep(run=1, step=0, kind="tool", name="first", output="old"))
    await offer(house, task_id, lost_run=1)
    house.work(Own(work), settings=HASTY)
    assert (await house.reach(task_id, "completed")).result == "old new"
    assert reached == [f"{task_id}:1"]


async def test_an_unknown_agents_task_waits_and_hinders_nobody(house: House) -> None:
    house.dispatch(HASTY)
    house.work()
    unknown = await house.submit(command=told("nobody"))
    impossible = await house.submit(command=CreateTask(agent="a.b >", fingerprint="f"))
    await house.reach(await house.submit({"complete": "done"}), "completed")
    await asyncio.sleep(HASTY.sweep_s * 2)
    await house.reach(await house.submit({"complete": "done"}), "completed")
    for task_id in (unknown, impossible):
        assert await house.tags(task_id) == ["created"]
        await house.cancel(task_id)


async def test_an_item_of_a_task_that_needs_no_worker_leaves_the_queue(house: House) -> None:
    house.work(Own(lambda _: waits()), settings=HASTY)
    ended = await house.submit(command=told())
    await house.cancel(ended)
    waiting = await house.submit(command=told())
    for task_id in (ended, waiting):
        await offer(house, task_id)
    await house.reach(waiting, "waiting_for_input")
    await offer(house, waiting)
    await empty(house)
    assert await house.tags(ended) == ["created", "cancelled"]
    assert await house.starts(waiting) == [(1, False)]


def waits() -> Work:
    answer = yield from ask("Who?")
    return answer


async def test_a_run_that_broke_while_nobody_listened_is_counted_once(house: House) -> None:
    """The command that reports it may be repeated: the second time it is stale, and changes nothing."""
    task_id = await house.submit(command=told("nobody"))
    await house.tell(task_id, StartRun(run=1, worker="w"))
    report = FailRun(run=1, error=Problem(code="agent_error", message="it broke"))
    await house.tell(task_id, report)
    await house.tell(task_id, report)
    assert await house.tags(task_id) == ["created", "started", "run_failed"]
