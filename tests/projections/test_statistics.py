"""What is counted: by day, agent and outcome, how long and for how much; and that what ended is forgotten."""

import tracemalloc
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.codec import encode
from eventstore.events import StepFinished, TaskFact, Usage
from eventstore.log import Arrival, task_subject
from eventstore.memory import MemoryLog
from projections.statistics import Figures, Lengths, OfDay, Spent, Statistics, Window
from tests.given import cancelled, completed, failed, message, started, timed_out
from tests.log.logs import record_of
from tests.projections.lives import ANN, BOB, Scribe, born, numbered

MONDAY = datetime(2026, 3, 2, 10, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def asked(model: str, tokens: int, cost: float) -> StepFinished:
    usage = Usage(model=model, input_tokens=tokens, output_tokens=1, cost=cost)
    return StepFinished(run=1, step=0, kind="text", usage=usage)


async def counted(window: Window) -> Figures:
    log = MemoryLog()
    scribe = Scribe(log)
    lives: list[tuple[datetime, TaskFact]] = [(MONDAY, born(agent="a")), (MONDAY, asked("m", 10, 0.5))]
    for when, fact in [*lives, (MONDAY + MINUTE, asked("m", 5, 0.25)), (MONDAY + DAY, completed())]:
        await scribe.write(ANN, numbered(1), fact, at=when)
    for number, ending in enumerate((cancelled(), failed(), timed_out()), start=2):
        await scribe.write(BOB, numbered(number), born(agent="b"), started(), at=MONDAY)
        await scribe.write(BOB, numbered(number), ending, at=MONDAY + number * MINUTE)
    await scribe.write(BOB, numbered(9), born(agent="b"), message(), at=MONDAY + DAY)
    statistics = Statistics(window)
    for arrival in log.arrivals:
        statistics.take(arrival)
    statistics.take(Arrival(len(log.arrivals) + 1, task_subject(BOB, numbered(10)), b"\xff"))
    statistics.take(Arrival(len(log.arrivals) + 2, "checkpoints", b"{}"))
    await log.close()
    return statistics.figures()


async def test_tasks_and_facts_are_counted_by_day_agent_and_outcome():
    figures = await counted(Window())
    assert (figures.records, figures.created, figures.not_ended, figures.unreadable) == (15, 5, 1, 1)
    monday, tuesday = figures.days
    assert monday == OfDay(day=date(2026, 3, 2), created=4, facts=12, failed=1, cancelled=1, timed_out=1)
    assert tuesday == OfDay(day=date(2026, 3, 3), created=1, facts=3, completed=1)
    assert figures.facts["task.created"] == 5
    a, b = figures.agents
    assert (a.agent, a.created, a.completed) == ("a", 1, 1)
    assert (b.agent, b.created, b.failed, b.cancelled, b.timed_out) == ("b", 4, 1, 1, 1)
    assert a.p50_s == a.p95_s == pytest.approx(86_400, rel=0.01)
    assert b.p50_s == pytest.approx(180, rel=0.01)
    assert b.p95_s == pytest.approx(240, rel=0.01)
    assert figures.spent == (
        Spent(day=monday.day, agent="a", model="m", steps=2, input_tokens=15, output_tokens=2, cost=0.75),
    )


async def test_an_owner_and_a_window_leave_the_others_out():
    anns = await counted(Window(owner=ANN))
    assert (anns.records, anns.created, [one.agent for one in anns.agents]) == (4, 1, ["a"])
    tuesday = await counted(Window(since=MONDAY + timedelta(hours=12)))
    assert [day.day for day in tuesday.days] == [date(2026, 3, 3)]
    # What ends in the window ended there, though it was created before; its length is known all the same.
    a, b = tuesday.agents
    assert (a.created, a.completed, a.p50_s) == (0, 1, pytest.approx(86_400, rel=0.01))
    assert (b.created, tuesday.not_ended) == (1, 1)
    monday = await counted(Window(until=MONDAY + timedelta(hours=12)))
    assert (monday.created, monday.not_ended, len(monday.days)) == (4, 0, 1)


@given(st.lists(st.floats(0.001, 1e7), min_size=1), st.floats(0.01, 1))
def test_lengths_are_right_to_one_percent(lengths: list[float], share: float):
    counted = Lengths()
    for one in lengths:
        counted.add(one)
    exact = next(
        one for at, one in enumerate(sorted(lengths), start=1) if at >= share * len(lengths) or at == len(lengths)
    )
    assert counted.quantile(share) == pytest.approx(exact, rel=0.012, abs=0.001)


def test_of_nothing_there_is_no_length():
    assert Lengths().quantile(0.5) is None


def test_what_ended_takes_no_memory():
    begun, ended = encode(record_of(born())), encode(record_of(completed()))
    statistics = Statistics(Window())
    subjects = [task_subject(ANN, numbered(number)) for number in range(5_000)]  # (some of which are kept elsewhere)

    def lives(first: int, last: int) -> None:
        for number, subject in enumerate(subjects[first:last], first):
            statistics.take(Arrival(2 * number + 1, subject, begun))
            statistics.take(Arrival(2 * number + 2, subject, ended))

    lives(0, 100)
    tracemalloc.start()
    try:
        lives(100, 5_000)
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert statistics.figures().created == 5_000
    assert now < 20_000
