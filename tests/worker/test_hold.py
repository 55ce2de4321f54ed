"""A worker's hold on a task, alone: what it does where the log says things late, or others are quicker."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from app.attached import Attached
from app.commands import CreateTask, FinishStep, RequestPause, ResumeTask, StartRun, StartStep
from app.hold import Hold, SetDown
from app.metrics import Metrics
from app.tasks import Done, Tasks
from eventstore.events import Owner, TaskId
from eventstore.log import Recorded
from eventstore.memory import MemoryLog
from eventstore.queue import Lease, Queue, WorkItem
from tests.log.logs import new_task
from tests.worker.agents import told
from tests.worker.house import ANN, CAUSE, SOON_S, House


@pytest.fixture
async def lease(house: House) -> AsyncGenerator[Lease]:
    """A real one, of an item that stands for any."""
    queue = await Queue.open(house.connection)
    await queue.offer(WorkItem(owner=ANN, task_id=new_task(), agent="nobody"))
    lease = await queue.take("nobody", wait_s=5.0)
    assert lease is not None
    yield lease
    await queue.close()


class LateReplica(MemoryLog):
    """The log in memory, whose first reads do not have the last record yet, as a replica behind its leader."""

    late = 3

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        records = await super().read(owner, task_id, after=after, limit=limit, max_bytes=max_bytes)
        if self.late and records:
            self.late -= 1
            return records[:-1]
        return records


async def test_a_pause_that_is_taken_back_just_as_the_worker_obeys_it_does_not_set_the_run_down(
    house: House, lease: Lease
) -> None:
    task_id = await house.submit(command=told("nobody"))
    await house.tell(task_id, StartRun(run=1, worker="w"))
    wished = await house.tell(task_id, RequestPause())
    assert isinstance(wished, Done)
    await house.tell(task_id, ResumeTask())
    # What it has attached says nothing (any more): it knows of the wish, and not that it was taken back.
    hold = Hold(house.tasks, Attached(ANN, task_id), wished.task, lease, CAUSE)
    await hold.may_begin()
    assert (await house.tags(task_id))[-1] == "resumed"
    await house.tell(task_id, RequestPause())
    with pytest.raises(SetDown) as down:
        await hold.may_begin()
    assert down.value.finished
    assert (await house.tags(task_id))[-1] == "paused"


async def test_a_replica_that_is_behind_does_not_hide_a_recorded_step(lease: Lease) -> None:
    log = LateReplica()
    tasks = await Tasks.open(log, Metrics())
    done = await tasks.create(ANN, CreateTask(agent="own", fingerprint="f"), CAUSE)
    assert isinstance(done, Done)
    task_id = done.task.task_id
    for command in (
        StartRun(run=1, worker="w"),
        StartStep(run=1, step=0, kind="tool", name="pay"),
        FinishStep(run=1, step=0, kind="tool", name="pay", output="paid"),
    ):
        done = await tasks.execute(ANN, task_id, command, CAUSE)
        assert isinstance(done, Done)
    async with tasks.attach(ANN, task_id) as attached:
        hold = Hold(tasks, attached, done.task, lease, CAUSE)
        await hold.read_on()
    assert log.late == 0
    assert hold.steps.answered[0].answer == "paid"
    await tasks.close()
    await log.close()


async def test_a_sleep_lasts_although_what_was_attached_has_become_void(house: House, lease: Lease) -> None:
    task_id = await house.submit(command=told("nobody"))
    done = await house.tell(task_id, StartRun(run=1, worker="w"))
    assert isinstance(done, Done)
    void = Attached(ANN, task_id)
    void.make_void("uncertain")
    hold = Hold(house.tasks, void, done.task, lease, CAUSE)
    sleeping = asyncio.create_task(hold.sleep(3600))
    await asyncio.wait({sleeping}, timeout=0.2)
    assert not sleeping.done()
    await house.cancel(task_id)
    await asyncio.wait_for(sleeping, SOON_S)
