"""Time travel: at every sequence a task is what its records so far say, and no more of them is read than needed."""

from collections.abc import Sequence
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.attached import RECENT
from app.dialects.native import render
from app.following import PAGE
from app.past import NotYet, as_it_was
from app.tasks import Tasks
from eventstore.events import Owner, TaskFact, TaskId
from eventstore.log import EventLog, Recorded
from eventstore.memory import MemoryLog
from projections.task import INITIAL, Task, evolve
from tests.lifecycle.test_codec import FACTS
from tests.log.logs import grow, new_task
from tests.projections.lives import ANN, BOB, Scribe, born
from tests.walk.lives import room


class NotingLog(MemoryLog):
    """The log in memory, which notes what was read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[list[Recorded]] = []

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        self.pages.append(await super().read(owner, task_id, after=after, limit=limit, max_bytes=max_bytes))
        return self.pages[-1]


def folded(records: Sequence[Recorded], at: int) -> Task:
    return reduce(evolve, (one for one in records if one.sequence <= at), INITIAL)


ANY_FACT = st.one_of(*FACTS.values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["it", "it", "another", "hers"]), ANY_FACT), max_size=20))
async def test_at_every_sequence_a_task_is_the_fold_of_what_there_was(life: list[tuple[str, TaskFact]]) -> None:
    log = MemoryLog()
    tasks = await room(log)
    scribe = Scribe(log)
    task_id, another = await scribe.task(born("it")), await scribe.task(born("another"))
    await scribe.write(BOB, task_id, born("hers"))
    for whose, fact in life:
        await scribe.write(BOB if whose == "hers" else ANN, another if whose == "another" else task_id, fact)
    its = [one for one in scribe.written if (one.owner, one.task_id) == (ANN, task_id)]
    for at in range(1, len(scribe.written) + 1):
        task = await as_it_was(tasks, ANN, task_id, at)
        assert task == folded(its, at)
        assert render(task, {}) == render(folded(its, at), {})
    assert await as_it_was(tasks, ANN, another, 1) == INITIAL
    assert await as_it_was(tasks, ANN, new_task(), 1) == INITIAL
    assert await as_it_was(tasks, ANN, task_id, 0) == INITIAL
    await tasks.close()
    await log.close()


async def test_a_long_past_is_read_in_bounded_pages_and_only_as_far_as_needed() -> None:
    log, task_id = NotingLog(), new_task()
    records = await grow(log, task_id, 3 * PAGE)
    tasks = await room(log)
    now = await as_it_was(tasks, ANN, task_id, records[-1].sequence)
    assert now == folded(records, records[-1].sequence)
    for length in (1, 2, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE + 7):
        log.pages.clear()
        at = records[length - 1].sequence
        assert await as_it_was(tasks, ANN, task_id, at) == folded(records, at)
        assert max(map(len, log.pages)) <= PAGE
        assert sum(map(len, log.pages)) == length, "what came later is not read"
    await tasks.close()
    await log.close()


async def test_the_past_is_the_same_on_either_log_and_from_every_room(
    log: EventLog, tasks: Tasks, other: Tasks
) -> None:
    task_id, another = new_task(), new_task()
    records = await grow(log, task_id, 3)
    await grow(log, another, 4)
    records += await grow(log, task_id, RECENT + 3, records[-1])
    last = await log.last_sequence()
    for at in (*range(1, 12), last - RECENT, last - 1, last):
        for one in (tasks, other):
            assert await as_it_was(one, ANN, task_id, at) == folded(records, at), at


async def test_what_the_log_has_not_come_to_is_no_past(log: EventLog, tasks: Tasks) -> None:
    task_id = new_task()
    (first,) = await grow(log, task_id, 1)
    for whose in (task_id, new_task()):
        with pytest.raises(NotYet, match=f"last sequence is {first.sequence}$"):
            await as_it_was(tasks, ANN, whose, first.sequence + 1)
    (second,) = await grow(log, task_id, 1, first)
    assert (await as_it_was(tasks, ANN, task_id, second.sequence)).version == 2
    assert (await as_it_was(tasks, ANN, task_id, first.sequence)).version == 1
