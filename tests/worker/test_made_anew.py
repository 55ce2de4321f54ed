"""Everything but the log is lost in the middle of 500 tasks: queue, timers, views, and whoever worked."""

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import Struct
from structlog.testing import capture_logs
from structlog.typing import EventDict

from app.agents.agent import Brief, Work, call_tool
from app.commands import CreateTask, FailRun, ReceiveInput, StartRun
from app.dispatcher import Dispatcher
from app.metrics import Metrics
from app.settings import WorkerSettings
from app.tasks import Tasks
from app.views import Lists
from eventstore.events import (
    InputRequested,
    Json,
    Problem,
    RunFailed,
    StepFinished,
    StepStarted,
    TaskCompleted,
    TaskId,
    TaskStarted,
    ToolUsed,
)
from eventstore.log import Recorded
from eventstore.memory import MemoryLog
from eventstore.queue import Queue
from eventstore.timers import Timers
from projections.database import Database
from projections.views import Views
from projections.views_errors import ViewsUnavailable
from tests.log.logs import until
from tests.projections.lives import Scribe, born, carry
from tests.projections.test_projector import FickleLog
from tests.worker.agents import Own, acted, told
from tests.worker.house import ANN, SOON_S, House, Place

SETTINGS = WorkerSettings(lease_s=2.0, sweep_s=0.5)
LIMIT = 40
WORK: list[Json] = [{"tool": "a", "takes": 0.1}, {"tool": "b", "takes": 0.1}, {"complete": "done"}]
ASK: list[Json] = [{"ask": "Who?"}, {"tool": "a"}, {"complete": "for {answer}"}]


class Crowd(Struct):
    """500 tasks, by what is to become of them."""

    answered: list[TaskId]
    unanswered: list[TaskId]
    retried: list[TaskId]
    workless: list[TaskId]
    working: list[TaskId]

    @property
    def completed(self) -> list[TaskId]:
        return [*self.answered, *self.retried, *self.working]

    @property
    def timed_out(self) -> list[TaskId]:
        return [*self.unanswered, *self.workless]


def due() -> datetime:
    """After all was lost, if the machine is not too busy; soon enough to be waited for."""
    return datetime.now(UTC) + timedelta(seconds=7)


def asked(steps: list[Json], *, agent: str = "simulator", deadline: datetime | None = None) -> CreateTask:
    return CreateTask(agent=agent, fingerprint="f", input={"steps": steps}, deadline=deadline)


async def gathered(house: House) -> Crowd:
    """They wait for answers, retries, slots, and for an agent that nobody plays; some of them not for ever."""

    async def submit(count: int, command: CreateTask) -> list[TaskId]:
        return list(await asyncio.gather(*(house.submit(command=command) for _ in range(count))))

    crowd = Crowd(
        answered=await submit(60, asked(ASK)),
        unanswered=await submit(40, asked(ASK, deadline=due())),
        retried=await submit(40, told()),
        workless=await submit(20, asked([], agent="nobody", deadline=due())),
        working=await submit(340, asked(WORK)),
    )
    await asyncio.gather(*(broken(house, task_id) for task_id in crowd.retried))
    return crowd


async def broken(house: House, task_id: TaskId) -> None:
    """As by a worker whose agent broke."""
    await house.tell(task_id, StartRun(run=1, worker="gone"))
    error = Problem(code="agent_error", message="it broke")
    await house.tell(task_id, FailRun(run=1, error=error, retry_at=due()))


async def until_in_full_swing(house: House, crowd: Crowd) -> None:
    """All that ask wait for their answer, some work is done, some is being done, and the rest stands in line."""
    for task_id in (*crowd.answered, *crowd.unanswered):
        await house.reach(task_id, lambda task: task.status in ("waiting_for_input", "timed_out"))
    await house.reach(crowd.working[LIMIT], lambda task: task.run > 0)
    for task_id in crowd.workless[LIMIT // 4 :]:
        await house.reach(task_id, lambda task: task.status in ("queued", "timed_out"))


async def carried(views_url: str, at_least: int = 0) -> int:
    """The views' checkpoint, once it is so far."""
    lists = Lists(views_url)
    try:
        async with asyncio.timeout(SOON_S):
            while True:
                with suppress(ViewsUnavailable):
                    checkpoint = await lists.checkpoint()
                    if checkpoint >= at_least:
                        return checkpoint
                await asyncio.sleep(0.02)
    finally:
        await lists.close()


def begun(records: list[Recorded]) -> Counter[str]:
    """How often each step was begun, by its idempotency key. Asserts that no run began beside one that was not over or
    lost, that none wrote when its successor had begun, and that no step was begun again once it was answered.

    (On a machine that stands still for seconds a living run is taken for lost; then, too, only one may write.)"""
    run, over, steps, answered = 0, True, Counter[str](), set[int]()
    for recorded in records:
        match recorded.record.fact:
            case TaskStarted() as fact:
                assert fact.run == run + 1
                assert over or fact.lost, records
                run, over = fact.run, False
            case StepStarted(run=of, step=step):
                assert of == run, records
                assert step not in answered, records
                steps[f"{recorded.task_id} {recorded.task_id}:{step}"] += 1
            case StepFinished(run=of, step=step) | ToolUsed(run=of, step=step):
                assert of == run, records
                answered.add(step)
            case RunFailed(run=of) | InputRequested(run=of) | TaskCompleted(run=of):
                assert of == run, records
                over = True
            case _:
                pass
    return steps


async def all_end_once(house: House, crowd: Crowd, effects: Path) -> None:
    """Every task runs to its end, every deadline fires, and none had two live runs: by its facts, and by what acted."""
    for task_id in crowd.completed:
        await house.reach(task_id, "completed")
    for task_id in crowd.timed_out:
        await house.reach(task_id, "timed_out")
    steps = Counter[str]()
    for task_id in (*crowd.completed, *crowd.timed_out):
        steps += begun(await house.records(task_id))
    counts = acted(effects)
    assert len(counts) == 2 * len(crowd.working) + len(crowd.answered)
    assert counts <= steps, counts - steps


def does_one_thing(_: Brief) -> Work:
    yield from call_tool("only", None, lambda _: None)
    return "done"


def terms(lines: list[EventDict]) -> list[EventDict]:
    """What a dispatcher said each time that it began."""
    return [line for line in lines if line["event"] == "dispatcher.leads"]


def lose_views(directory: Path) -> None:
    for file in directory.glob("views.sqlite*"):
        file.unlink()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("views", ["lost", "kept"])
async def test_five_hundred_tasks_end_once_after_all_but_the_log_was_lost(
    place: Place, tmp_path: Path, views: str
) -> None:
    house, effects = place.house, tmp_path / "effects"
    views_url = f"sqlite:///{tmp_path / 'views.sqlite'}"
    limits = {"nobody": LIMIT // 4}
    dispatching = house.dispatch(SETTINGS, limit=LIMIT, limits=limits, views_url=views_url)
    worker = await house.spawn(settings=SETTINGS, effects=effects)
    crowd = await gathered(house)
    await until_in_full_swing(house, crowd)
    await worker.kill()
    await carried(views_url, await house.log.last_sequence())
    await house.stop(dispatching)
    checkpoint = await carried(views_url)
    await house.tasks.tail.catch_up()
    await place.forget_work()
    if views == "lost":
        lose_views(tmp_path)
    left = [await house.reach(task_id, lambda _: True) for task_id in crowd.working]
    assert any(task.in_hand is not None for task in left)
    assert any(task.status == "queued" for task in left)
    # What comes while nobody is there is heard of all the same.
    await asyncio.gather(*(house.tell(task_id, ReceiveInput(text="Ann")) for task_id in crowd.answered))
    with capture_logs() as lines:
        house.dispatch(SETTINGS, limit=LIMIT, limits=limits, views_url=views_url)
        await until(lambda: bool(terms(lines)))
        (leads,) = terms(lines)
        assert leads["checkpoint"] == (checkpoint if views == "kept" else 0)
        assert leads["tasks"] >= len(crowd.working) // 2
        for _ in range(2):
            await house.spawn(settings=SETTINGS, effects=effects)
        house.work(Own(does_one_thing), settings=SETTINGS)
        await all_end_once(house, crowd, effects)


async def test_views_of_another_log_are_not_begun_with(house: House, tmp_path: Path) -> None:
    other, views_url = MemoryLog(), f"sqlite:///{tmp_path / 'views.sqlite'}"
    database = Database.open(views_url)
    for _ in range(3):
        await Scribe(other).task(born(), owner=ANN)
    await carry(other, database)
    await database.close()
    task_ids = [await house.submit({"complete": "done"}) for _ in range(5)]
    with capture_logs() as lines:
        house.dispatch(views_url=views_url)
        house.work()
        for task_id in task_ids:
            await house.reach(task_id, "completed")
    (leads,) = terms(lines)
    assert (leads["checkpoint"], leads["tasks"]) == (0, 5)
    assert "of another log" in str(lines)


async def test_a_dispatcher_whose_log_turns_out_to_be_another_begins_anew(house: House, database: Database) -> None:
    """The place in the log from which it followed means nothing any more, nor does what it had taken over."""
    log = FickleLog()
    scribe = Scribe(log)
    for _ in range(3):
        await scribe.task(born(), owner=ANN)
    await carry(log, database)
    await scribe.task(born(), owner=ANN)
    tasks, queue, timers = (
        await Tasks.open(log, Metrics()),
        await Queue.open(house.connection),
        await Timers.open(house.connection),
    )
    rooms = (house.connection, tasks, queue, timers, Views(database))
    dispatcher = Dispatcher(*rooms, limits={}, default_limit=32, sweep_s=60.0)
    with capture_logs() as lines:
        leading = asyncio.ensure_future(dispatcher.lead())
        for number in (1, 2):
            await until(lambda number=number: len(terms(lines)) == number)
            log.resets[-1]()
        await until(lambda: len(terms(lines)) == 3)
        await scribe.task(born(agent="own"), owner=ANN)
        await house.offered("own")
    leading.cancel()
    await asyncio.wait({leading})
    assert [(one["checkpoint"], one["tasks"]) for one in terms(lines)] == [(3, 4)] * 3
    for room in (queue, timers, tasks, log):
        await room.close()
