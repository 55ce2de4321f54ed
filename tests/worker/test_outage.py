"""The server dies under running tasks: a short outage costs nothing, a long one costs runs, and neither a task."""

import asyncio
from pathlib import Path

from app.agents.simulator import Simulator
from app.commands import ReceiveInput
from eventstore.server import EmbeddedServer
from tests.worker.agents import STEPS, acted
from tests.worker.house import CALM, HASTY, opened


async def test_a_restart_of_the_server_costs_no_run(server: EmbeddedServer, tmp_path: Path) -> None:
    """The outage is shorter than the lease: nobody is taken for dead, and what was in flight is said again."""
    effects = tmp_path / "effects"
    async with opened(server.address) as house:
        house.dispatch(CALM)
        for n in range(2):
            house.work(Simulator(effects=effects), worker_id=f"w{n}")
        task_ids = [await house.submit(*STEPS, {"say": "Bye.", "takes": 0.3}) for _ in range(20)]
        await house.reach(task_ids[0], lambda task: task.steps >= 1)
        await server.kill()
        await server.restart()
        for task_id in task_ids:
            task = await house.reach(task_id, "completed")
            assert (task.run, task.failures) == (1, 0), await house.tags(task_id)
        assert set(acted(effects).values()) == {1}
        assert len(acted(effects)) == len(task_ids) * len(STEPS)


async def test_a_long_outage_loses_runs_but_no_task(server: EmbeddedServer, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    async with opened(server.address) as house:
        house.dispatch(HASTY)
        for n in range(2):
            house.work(Simulator(effects=effects), settings=HASTY, worker_id=f"w{n}")
        task_ids = [await house.submit(*STEPS, {"ask": "Go on?"}, {"complete": "{answer}"}) for _ in range(10)]
        for task_id in task_ids:
            await house.reach(task_id, lambda task: task.steps >= 1)
        await server.kill()
        await asyncio.sleep(HASTY.lease_s + 0.5)
        await server.restart()
        for task_id in task_ids:
            await house.reach(task_id, "waiting_for_input")
            await house.tell(task_id, ReceiveInput(text="yes"))
        for task_id in task_ids:
            task = await house.reach(task_id, "completed")
            assert task.result == "yes"
            tags = await house.tags(task_id)
            assert tags.count("tool_used") == len(STEPS)
        # The step in hand at a take-over may run again; nothing else.
        taken_over = [lost for task_id in task_ids for _, lost in await house.starts(task_id) if lost]
        assert sum(acted(effects).values()) <= len(task_ids) * len(STEPS) + len(taken_over)
