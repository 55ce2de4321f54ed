"""The dispatcher on a real server: limits, what gets lost under it, and what happens when it dies itself."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import eventstore.tail
from app.agents.simulator import Simulator
from app.commands import CreateTask
from app.settings import WorkerSettings
from eventstore.events import TaskStarted
from eventstore.queue import Queue
from tests.bench.records import fill
from tests.worker.agents import Gate, acts_twice, scenario, told
from tests.worker.house import HASTY, House, Place


async def test_an_agent_runs_no_more_than_its_limit_and_the_others_wait_in_order(house: House) -> None:
    gate, after = Gate(), list[str]()
    house.dispatch(limits={"own": 2})
    house.work(acts_twice(gate, after))
    task_ids = [await house.submit(command=told()) for _ in range(6)]
    for task_id in task_ids[:2]:
        await house.reach(task_id, "running")
    for task_id in task_ids[2:]:
        await house.reach(task_id, "queued")
    gate.let.set()
    for task_id in task_ids:
        await house.reach(task_id, "completed")
    started_at = [
        one.sequence
        for task_id in task_ids
        for one in await house.records(task_id)
        if isinstance(one.record.fact, TaskStarted)
    ]
    assert len(started_at) == 6
    # Those that were offered one after the other began in that order; two may be offered at once.
    assert max(started_at[:2]) < min(started_at[2:])
    assert max(started_at[2:4]) < max(started_at[4:])
    assert "queued" not in await house.tags(task_ids[0])


async def test_a_log_that_takes_long_to_read_is_read_once_and_led(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a tail may take to catch up is no bound for a log of years: it would be read from its beginning for ever.
    monkeypatch.setattr(eventstore.tail, "CATCH_UP_WITHIN_S", 0.0)
    await fill(house.log, 10_000)
    task_id = await house.submit({"complete": "done"})
    house.dispatch()
    house.work()
    await house.reach(task_id, "completed")


async def test_a_task_that_waits_for_its_user_leaves_its_slot_to_others(house: House) -> None:
    house.dispatch(limits={"simulator": 1})
    house.work()
    waiting = await house.submit({"ask": "Who?"})
    after = await house.submit({"complete": "done"})
    await house.reach(after, "completed")
    await house.reach(waiting, "waiting_for_input")


async def test_a_queued_task_may_run_out_of_time_and_leaves_the_line(house: House) -> None:
    house.dispatch(limits={"simulator": 1})
    house.work()
    running = await house.submit({"sleep": 3600})
    await house.reach(running, "running")
    late = await house.submit(command=scenario({"complete": "never"}, timeout_s=1.0))
    next_one = await house.submit({"complete": "done"})
    assert (await house.reach(late, "queued")).run == 0
    await house.reach(late, "timed_out")
    await house.cancel(running)
    await house.reach(next_one, "completed")
    assert await house.tags(late) == ["created", "queued", "timed_out"]


async def test_a_purged_queue_is_offered_again_and_what_runs_goes_on(place: Place) -> None:
    house, gate, after = place.house, Gate(), list[str]()
    house.dispatch(HASTY)
    pending = await house.submit(command=told())
    await house.offered("own")
    await place.archive.api("STREAM.PURGE.WORK")
    house.work(acts_twice(gate, after), settings=HASTY)
    await house.reach(pending, "running")
    running = await house.submit(command=told())
    await house.reach(running, "running")
    await place.archive.api("STREAM.PURGE.WORK")
    await asyncio.sleep(HASTY.lease_s * 2 + HASTY.sweep_s * 2)  # so that both are suspected: their worker answers
    gate.let.set()
    for task_id in (pending, running):
        task = await house.reach(task_id, "completed")
        assert (task.run, task.failures) == (1, 0)
    assert gate.acted == 2


async def test_a_run_whose_item_and_worker_are_both_lost_is_taken_over(place: Place) -> None:
    """Nothing comes back by itself: only the sweep can know."""
    house = place.house
    house.dispatch(HASTY)
    child = await house.spawn(settings=HASTY)
    task_id = await house.submit({"tool": "slow", "takes": 1.5})
    await house.reach(task_id, lambda task: task.in_hand is not None)
    await place.archive.api("STREAM.PURGE.WORK")
    await child.kill()
    house.work(settings=HASTY)
    task = await house.reach(task_id, "completed")
    assert (task.run, task.failures) == (2, 1)


async def test_a_living_but_silent_run_does_not_pile_up_items(place: Place) -> None:
    house, gate = place.house, Gate()
    house.dispatch(HASTY)
    house.work(acts_twice(gate, []), settings=HASTY)
    task_id = await house.submit(command=told())
    await gate.acting.wait()
    await place.archive.api("STREAM.PURGE.WORK")
    await asyncio.sleep(HASTY.lease_s * 2 + HASTY.sweep_s * 4)
    queue = await Queue.open(place.archive)
    assert await queue.depth() == {}
    await queue.close()
    gate.let.set()
    assert (await house.reach(task_id, "completed")).run == 1


async def test_without_its_streams_a_new_dispatcher_makes_all_anew(place: Place) -> None:
    house = place.house
    first = house.dispatch()
    deadlined = await house.submit(command=scenario({"ask": "Who?"}, timeout_s=4.0))
    pending = await house.submit(command=told())
    worker = house.work()
    await house.reach(deadlined, "waiting_for_input")
    await house.offered("own")
    await house.stop(worker)
    await house.stop(first)
    await place.forget_work()
    house.dispatch()
    gate = Gate()
    gate.let.set()
    house.work(acts_twice(gate, []), Simulator())
    await house.reach(pending, "completed")
    await house.reach(deadlined, "timed_out")


async def test_streams_that_are_deleted_under_a_dispatcher_are_missed_by_its_sweep(place: Place) -> None:
    house = place.house
    house.dispatch(HASTY)
    pending = await house.submit(command=told())
    deadline = datetime.now(UTC) + timedelta(seconds=1.5)
    asked = CreateTask(agent="nobody", fingerprint="f", deadline=deadline)
    deadlined = await house.submit(command=asked)
    await house.offered("own")
    await house.offered("nobody")
    await place.forget_work()
    gate = Gate()
    gate.let.set()
    house.work(acts_twice(gate, []), settings=HASTY)
    await house.reach(pending, "completed")
    await house.reach(deadlined, "timed_out")


async def test_a_dispatcher_that_dies_is_followed_by_the_other(house: House) -> None:
    first = await house.spawn(dispatcher=True)
    await first.says("dispatcher.leads")
    second = await house.spawn(dispatcher=True)
    house.work()
    before = await house.submit({"ask": "Who?"})
    await house.reach(before, "waiting_for_input")
    await first.kill()
    during = await house.submit(command=scenario({"sleep": 3600}, timeout_s=6.0))
    await second.says("dispatcher.leads")
    await house.reach(during, "running")
    await house.reach(await house.submit({"complete": "done"}), "completed")
    await house.reach(during, "timed_out")
    assert await house.starts(during) == [(1, False)]


async def test_a_dispatcher_that_is_told_to_stop_is_followed_at_once(house: House) -> None:
    first = house.dispatch()
    house.work()
    await house.reach(await house.submit({"complete": "by the first"}), "completed")
    second = house.dispatch()
    await house.stop(first)
    await house.reach(await house.submit({"complete": "by the second"}), "completed")
    assert not second.done()


async def test_a_dispatcher_leads_again_and_again(place: Place) -> None:
    """Each outage ends its term; whatever it was about to do then is done in the next one."""
    house = place.house
    house.dispatch(WorkerSettings(lease_s=4.0, sweep_s=60.0))
    # A lease longer than the outage, but short: an item that was on its way when the server died waits for its end.
    house.work(settings=WorkerSettings(lease_s=4.0))
    for _ in range(2):
        task_ids = [await house.submit({"complete": "done"}) for _ in range(100)]
        await place.server.kill()
        await place.server.restart()
        for task_id in task_ids:
            await house.reach(task_id, "completed")
