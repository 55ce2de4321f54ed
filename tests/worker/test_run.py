"""A task's life through a dispatcher and a worker, on a real log: its steps, their answers, and how they break."""

from datetime import datetime

import pytest

from app.agents.agent import (
    Act,
    Brief,
    CallTool,
    Say,
    StepFailed,
    Work,
    ask,
    call_tool,
    draw_random,
    read_clock,
    say,
    sleep,
)
from app.commands import ReceiveInput, StartRun, StartStep
from eventstore.events import (
    Json,
    PartialProduced,
    RunFailed,
    TaskId,
    ToolUsed,
)
from projections.task import Task
from tests.worker.agents import Own, told
from tests.worker.house import HASTY, House


@pytest.fixture(autouse=True)
async def dispatched(house: House) -> None:
    house.dispatch(HASTY)


async def test_a_task_runs_to_its_end_and_its_facts_tell_how(house: House) -> None:
    house.work()
    task_id = await house.submit(
        {"tool": "search", "input": {"q": 1}, "output": {"hits": 2}},
        {"say": "Hello."},
        {"usage": {"model": "m", "input_tokens": 3}},
        {"sleep": 0.01},
        {"complete": "done"},
    )
    task = await house.reach(task_id, "completed")
    assert (task.result, task.run, task.failures, task.partial_text) == ("done", 1, 0, "Hello.")
    assert (task.tools_used, task.usage and task.usage.input_tokens) == (("search",), 3)
    assert await house.tags(task_id) == [
        *("created", "started", "step_started", "tool_used", "partial", "step_finished"),
        *("step_finished", "step_finished", "completed"),
    ]


async def test_time_and_chance_are_the_same_in_every_run(house: House) -> None:
    seen: list[tuple[datetime, float]] = []

    def work(_: Brief) -> Work:
        seen.append(((yield from read_clock()), (yield from draw_random())))
        yield from sleep(0.0)
        yield from ask("Again?")
        return None

    house.work(Own(work))
    task_id = await house.submit(command=told())
    await house.reach(task_id, "waiting_for_input")
    await house.tell(task_id, ReceiveInput(text="yes"))
    await house.reach(task_id, "completed")
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_text_comes_gathered_and_whole(house: House) -> None:
    words = tuple(f"w{n} " for n in range(2000))
    long = "é" * 5000

    def work(_: Brief) -> Work:
        yield Say(text="".join(words), pieces=words)
        yield Say(text=long)
        return None

    house.work(Own(work))
    task_id = await house.submit(command=told())
    await house.reach(task_id, "completed")
    partials = [fact for fact in await house.facts(task_id) if isinstance(fact, PartialProduced)]
    for step, text in enumerate(("".join(words), long)):
        said = [partial for partial in partials if partial.step == step]
        assert "".join(partial.text for partial in said) == text
        assert [partial.offset for partial in said] == [
            sum(len(partial.text) for partial in said[:n]) for n in range(len(said))
        ]
        assert len(said) == -(-len(text.encode()) // 2048)
        assert max(len(partial.text.encode()) for partial in said) <= 2048


async def test_slow_text_is_not_held_back_until_it_fills_a_flush(house: House) -> None:
    def work(_: Brief) -> Work:
        yield Say(text="ab", pieces=("a", "b"), every_s=0.2)
        return None

    house.work(Own(work))
    task_id = await house.submit(command=told())
    await house.reach(task_id, "completed")
    assert [fact.text for fact in await house.facts(task_id) if isinstance(fact, PartialProduced)] == ["a", "b"]


async def test_a_tools_refusal_is_thrown_into_the_agent_in_every_run(house: House) -> None:
    caught: list[str] = []

    def refuse(_: Act) -> Json:
        raise StepFailed("no_such_page", "there is no page 7")

    def work(_: Brief) -> Work:
        try:
            yield from call_tool("read", 7, refuse)
        except StepFailed as error:
            caught.append(f"{error.problem.code}: {error.problem.message}")
        yield from ask("Another?")
        return "went on"

    house.work(Own(work))
    task_id = await house.submit(command=told())
    await house.reach(task_id, "waiting_for_input")
    await house.tell(task_id, ReceiveInput(text="no"))
    task = await house.reach(task_id, "completed")
    assert (task.result, task.failures) == ("went on", 0)
    assert caught == ["no_such_page: there is no page 7"] * 2
    [used] = [fact for fact in await house.facts(task_id) if isinstance(fact, ToolUsed)]
    assert used.error is not None
    assert used.error.code == "no_such_page"


async def test_a_run_that_breaks_is_tried_again_later_and_its_recorded_steps_are_not(house: House) -> None:
    acted: list[str] = []
    broken: list[int] = []

    def work(_: Brief) -> Work:
        yield from call_tool("once", None, lambda act: acted.append(act.idempotency_key))
        if not broken:
            broken.append(1)
            raise ZeroDivisionError("by chance")
        return "in the end"

    house.work(Own(work))
    task_id = await house.submit(command=told())
    task = await house.reach(task_id, "completed")
    assert (task.result, task.run, task.failures) == ("in the end", 2, 1)
    assert acted == [f"{task_id}:0"]
    records = await house.records(task_id)
    at = {tag: recorded.record.at for tag, recorded in zip(await house.tags(task_id), records, strict=True)}
    [failed] = [fact for fact in await house.facts(task_id) if isinstance(fact, RunFailed)]
    assert failed.error.message == "ZeroDivisionError: by chance"
    assert failed.retry_at is not None
    assert at["run_failed"] < failed.retry_at <= at["completed"]


async def test_a_task_whose_runs_all_break_fails_with_the_last_error(house: House) -> None:
    def work(_: Brief) -> Work:
        yield from say("hm")
        raise ValueError("\ud800 is half a letter")

    house.work(Own(work))
    task = await house.reach(await house.submit(command=told(max_failures=2)), "failed")
    assert task.error is not None
    assert task.error.code == "agent_error"
    assert "half a letter" in task.error.message
    assert task.run == 2


async def test_a_tool_that_breaks_or_gives_no_json_breaks_the_run_not_the_worker(house: House) -> None:
    def no_json(_: Act) -> Json:
        return object()

    async def breaks(_: Act) -> Json:
        raise OSError("disk on fire")

    def work(brief: Brief) -> Work:
        yield from call_tool("t", None, no_json if brief.input else breaks)
        return None

    house.work(Own(work))
    for given in (True, False):
        task = await house.reach(await house.submit(command=told(given=given, max_failures=1)), "failed")
        assert task.error is not None
        assert task.error.code == "agent_error"


async def test_an_agent_that_will_not_be_closed_changes_nothing(house: House) -> None:
    def work(_: Brief) -> Work:
        try:
            yield from ask("Who?")
        finally:
            yield Say(text="one more thing")
        return "never"

    house.work(Own(work))
    task_id = await house.submit(command=told())
    assert (await house.reach(task_id, "waiting_for_input")).failures == 0


async def changed(house: House, first: Own, then: Own) -> Task:
    """The end of a task whose agent was exchanged while it waited."""
    worker = house.work(first)
    task_id = await house.submit(command=told())
    await house.reach(task_id, "waiting_for_input")
    await house.stop(worker)
    worker = house.work(then)
    await house.tell(task_id, ReceiveInput(text="go on"))
    task = await house.reach(task_id, "failed")
    await house.stop(worker)
    return task


async def test_an_agent_that_asks_otherwise_than_is_on_record_fails_clearly(house: House) -> None:
    def first(_: Brief) -> Work:
        yield from call_tool("search", 1, lambda _: None)
        yield from ask("Go on?")
        return None

    def other_input(_: Brief) -> Work:
        yield from call_tool("search", 2, lambda _: None)
        return None

    def other_tool(_: Brief) -> Work:
        yield from call_tool("read", 1, lambda _: None)
        return None

    def shorter(_: Brief) -> Work:
        yield from call_tool("search", 1, lambda _: None)
        return "too early"

    for then, why in ((other_input, "asked otherwise"), (other_tool, "'tool read'"), (shorter, "ends before step 1")):
        task = await changed(house, Own(first, name="own"), Own(then, name="own"))
        assert task.error is not None
        assert task.error.code == "agent_changed"
        assert why in task.error.message


async def test_a_step_that_may_not_run_twice_fails_where_nobody_knows_how_far_it_came(house: House) -> None:
    acted: list[bool] = []

    def pay(act: Act) -> Json:
        acted.append(act.started_before)
        return None

    def work(brief: Brief) -> Work:
        yield CallTool(name="pay", input=None, act=pay, after_crash="fail" if brief.input else "again")
        return "paid"

    async def cut_off(*, fail: bool) -> TaskId:
        task_id = await house.submit(command=told(given=fail))
        await house.offered("own")
        await house.tell(task_id, StartRun(run=1, worker="dead"))
        await house.tell(task_id, StartStep(run=1, step=0, kind="tool", name="pay"))
        return task_id

    once, again = await cut_off(fail=True), await cut_off(fail=False)
    house.work(Own(work))
    task = await house.reach(once, "failed")
    assert task.error is not None
    assert task.error.code == "step_outcome_unknown"
    await house.reach(again, "completed")
    assert acted == [True]


async def test_what_is_too_large_is_refused_in_words(house: House) -> None:
    def work(brief: Brief) -> Work:
        if brief.input == "question":
            yield from ask("?" * 200_000)
        if brief.input == "result":
            return "x" * (17 * 1024 * 1024)
        try:
            yield from call_tool("fetch", None, lambda _: "x" * (17 * 1024 * 1024))
        except StepFailed as error:
            return error.problem.code
        return None

    house.work(Own(work))
    for given in ("question", "result"):
        task = await house.reach(await house.submit(command=told(given=given)), "failed")
        assert task.error is not None
        assert task.error.code == "too_large"
    assert (await house.reach(await house.submit(command=told(given="output")), "completed")).result == "too_large"


async def test_what_is_too_big_for_the_log_reaches_the_agent_whole_in_every_run(house: House) -> None:
    big = "x" * 400_000
    seen: list[tuple[object, object]] = []

    def work(brief: Brief) -> Work:
        output = yield from call_tool("fetch", big, lambda _: {"big": big})
        seen.append((brief.input, output))
        yield from ask("Go on?")
        return None

    house.work(Own(work))
    task_id = await house.submit(command=told(given={"text": big}))
    await house.reach(task_id, "waiting_for_input")
    await house.tell(task_id, ReceiveInput(text="yes"))
    await house.reach(task_id, "completed")
    assert seen == [({"text": big}, {"big": big})] * 2
    used = next(recorded for recorded in await house.records(task_id) if isinstance(recorded.record.fact, ToolUsed))
    assert used.record.blob is not None


async def test_text_that_no_json_can_hold_does_not_keep_a_result_from_the_log(house: House) -> None:
    def work(_: Brief) -> Work:
        yield from say("hm")
        return "half \ud800"

    house.work(Own(work))
    assert (await house.reach(await house.submit(command=told()), "completed")).result == "half ?"
