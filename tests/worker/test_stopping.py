"""A task that is stopped from outside: paused, cancelled, out of time."""

import pytest

from app.commands import ReceiveInput, RequestPause, ResumeTask
from app.settings import WorkerSettings
from tests.worker.agents import Gate, acts_twice, scenario, told
from tests.worker.house import HASTY, House

ONE_SLOT = WorkerSettings(slots=1, lease_s=20.0)


@pytest.fixture(autouse=True)
async def dispatched(house: House) -> None:
    house.dispatch(HASTY)


async def test_a_pause_waits_for_the_step_in_hand_and_a_resumed_task_goes_on_behind_it(house: House) -> None:
    gate, acted = Gate(), list[str]()
    house.work(acts_twice(gate, acted))
    task_id = await house.submit(command=told())
    await gate.acting.wait()
    await house.tell(task_id, RequestPause(reason="lunch"))
    assert (await house.reach(task_id, lambda task: task.pause_requested)).status == "running"
    gate.let.set()
    paused = await house.reach(task_id, "paused")
    assert (paused.steps, acted) == (1, [])
    await house.tell(task_id, ResumeTask())
    task = await house.reach(task_id, "completed")
    assert (task.result, task.run, task.failures) == ("both", 2, 0)
    assert (gate.acted, acted) == (1, [f"{task_id}:1"])


async def test_a_pause_that_is_taken_back_in_time_is_none(house: House) -> None:
    gate, acted = Gate(), list[str]()
    house.work(acts_twice(gate, acted))
    task_id = await house.submit(command=told())
    await gate.acting.wait()
    await house.tell(task_id, RequestPause())
    await house.tell(task_id, ResumeTask())
    gate.let.set()
    assert (await house.reach(task_id, "completed")).run == 1
    assert "paused" not in await house.tags(task_id)


async def test_an_agent_that_only_speaks_is_paused_too(house: House) -> None:
    house.work()
    task_id = await house.submit({"repeat": 400, "steps": [{"say": "On and on. ", "takes": 0.05}]})
    await house.reach(task_id, lambda task: task.steps > 1)
    await house.tell(task_id, RequestPause())
    paused = await house.reach(task_id, "paused")
    await house.tell(task_id, ResumeTask())
    assert (await house.reach(task_id, lambda task: task.steps > paused.steps)).run == 2
    await house.cancel(task_id)


async def test_a_task_paused_while_it_waits_is_answered_and_resumed_in_either_order(house: House) -> None:
    house.work()
    first, second = [await house.submit({"ask": "Who?"}, {"complete": "{answer}"}) for _ in range(2)]
    for task_id in (first, second):
        await house.reach(task_id, "waiting_for_input")
        await house.tell(task_id, RequestPause())
        await house.reach(task_id, "paused")
    await house.tell(first, ReceiveInput(text="Ben"))
    assert (await house.reach(first, lambda task: task.question is None)).status == "paused"
    await house.tell(first, ResumeTask())
    await house.tell(second, ResumeTask())
    assert (await house.reach(second, "waiting_for_input")).question == "Who?"
    await house.tell(second, ReceiveInput(text="Cem"))
    assert [(await house.reach(task_id, "completed")).result for task_id in (first, second)] == ["Ben", "Cem"]


async def test_a_cancelled_tasks_step_in_hand_ends_and_none_follows(house: House) -> None:
    gate, acted = Gate(), list[str]()
    house.work(acts_twice(gate, acted))
    task_id = await house.submit(command=told())
    await gate.acting.wait()
    await house.cancel(task_id)
    gate.let.set()
    after = await house.submit(command=told())  # by the time that this one has run, the other had its chance
    await house.reach(after, "completed")
    assert (gate.acted, acted) == (2, [f"{after}:1"])
    assert await house.tags(task_id) == ["created", "started", "step_started", "cancelled"]


async def test_a_cancelled_task_sleeps_no_longer(house: House) -> None:
    house.work(settings=ONE_SLOT)
    sleeper = await house.submit({"sleep": 3600})
    await house.reach(sleeper, "running")
    await house.cancel(sleeper)
    await house.reach(await house.submit({"complete": "the only slot is free"}), "completed")
    assert await house.tags(sleeper) == ["created", "started", "cancelled"]


async def test_a_deadline_ends_a_task_in_whatever_it_is(house: House) -> None:
    house.work(settings=ONE_SLOT)
    waiting = await house.submit(command=scenario({"ask": "Who?"}, timeout_s=2.5))
    await house.reach(waiting, "waiting_for_input")
    paused = await house.submit(command=scenario({"ask": "Who?"}, timeout_s=2.5))
    await house.reach(paused, "waiting_for_input")
    await house.tell(paused, RequestPause())
    running = await house.submit(command=scenario({"sleep": 3600}, timeout_s=2.5))
    await house.reach(running, "running")
    pending = await house.submit(command=scenario({"complete": "never"}, timeout_s=0.5))
    for task_id in (waiting, paused, running, pending):
        task = await house.reach(task_id, "timed_out")
        assert task.error is not None
        assert task.error.code == "timeout"
        assert (await house.tags(task_id)).count("timed_out") == 1
    assert "started" not in await house.tags(pending)


async def test_a_worker_that_is_told_to_stop_gives_its_runs_back_and_nothing_counts_as_a_failure(house: House) -> None:
    gate, acted = Gate(), list[str]()
    first = house.work(acts_twice(gate, acted), settings=ONE_SLOT)
    task_id = await house.submit(command=told())
    await gate.acting.wait()
    await house.stop(first)
    given_back = await house.reach(task_id, "pending")
    assert (given_back.failures, given_back.run) == (0, 1)
    gate.let.set()
    house.work(acts_twice(gate, acted), settings=ONE_SLOT)
    task = await house.reach(task_id, "completed")
    assert (task.run, task.failures) == (2, 0)
    assert await house.starts(task_id) == [(1, False), (2, False)]


async def test_a_cancelled_tasks_tool_holds_its_worker_no_longer(house: House) -> None:
    house.work(settings=ONE_SLOT)
    long = await house.submit({"tool": "x", "takes": 3_600})
    await house.reach(long, lambda task: task.in_hand is not None)
    slow = await house.submit({"say": "one two", "takes": 3_600})
    await house.cancel(long)
    await house.reach(slow, "running")
    await house.cancel(slow)
    assert (await house.reach(await house.submit({"complete": "ran"}), "completed")).result == "ran"
