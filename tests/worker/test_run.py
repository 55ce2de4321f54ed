"""The whole life of a task through a dispatcher and a worker, on a real log: what an agent asks and what it is told."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

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
    propose,
    read_clock,
    read_inbox,
    say,
    sleep,
)
from app.agents.simulator import Simulator
from app.attached import Attached
from app.decide import (
    CreateTask,
    DecideReview,
    ProposePlan,
    ReceiveInput,
    RequestPause,
    ResumeTask,
    StartRun,
    StartStep,
)
from app.hold import Hold, SetDown
from app.settings import WorkerSettings
from app.tasks import Done
from eventstore.events import (
    ApprovalMode,
    Json,
    PartialProduced,
    PlannedStep,
    PlanProposed,
    RunFailed,
    StepFinished,
    TaskId,
    ToolUsed,
)
from eventstore.queue import Queue, WorkItem, announce_lost
from projections.task import Task
from tests.log.logs import new_task
from tests.worker.house import ANN, CAUSE, HASTY, House, Own

ONE_SLOT = WorkerSettings(slots=1, lease_s=20.0)


@pytest.fixture(autouse=True)
async def dispatched(house: House) -> None:
    house.dispatch(HASTY)


def told(agent: str = "own", *, given: Json = None, mode: ApprovalMode = "auto", max_failures: int = 5) -> CreateTask:
    return CreateTask(agent=agent, fingerprint="f", input=given, approval_mode=mode, max_failures=max_failures)


def scenario(*steps: Json, mode: ApprovalMode = "auto", timeout_s: float | None = None) -> CreateTask:
    deadline = None if timeout_s is None else datetime.now(UTC) + timedelta(seconds=timeout_s)
    return CreateTask(
        agent="simulator", fingerprint="f", input={"steps": list(steps)}, approval_mode=mode, deadline=deadline
    )


class Gate:
    """A tool that says that it acts, and ends when it is let."""

    def __init__(self) -> None:
        self.acting = asyncio.Event()
        self.let = asyncio.Event()
        self.acted = 0

    async def act(self, _: Act) -> Json:
        self.acting.set()
        await self.let.wait()
        self.acted += 1
        return "acted"


def acts_twice(gate: Gate, acted: list[str]) -> Own:
    """Its first tool is the gate; its second tells that it was reached."""

    def work(_: Brief) -> Work:
        yield from call_tool("first", None, gate.act)
        yield from call_tool("second", None, lambda act: acted.append(act.idempotency_key))
        return "both"

    return Own(work)


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


async def test_a_question_is_answered_in_a_second_run_which_is_no_failure(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.work(Simulator(effects=effects))
    task_id = await house.submit({"tool": "before"}, {"ask": "Who?"}, {"tool": "after"}, {"complete": "For {answer}"})
    waiting = await house.reach(task_id, "waiting_for_input")
    assert (waiting.question, waiting.worker) == ("Who?", None)
    await house.tell(task_id, ReceiveInput(text="Ben"))
    task = await house.reach(task_id, "completed")
    assert (task.result, task.run, task.failures) == ("For Ben", 2, 0)
    assert effects.read_text().split("\n") == [f"{task_id} {task_id}:0", f"{task_id} {task_id}:2", ""]


async def test_a_review_may_be_approved_or_refused(house: House) -> None:
    house.work()
    yes, no = [await house.submit({"review": "Send it?"}, {"complete": "sent"}) for _ in range(2)]
    for task_id, approved in ((yes, True), (no, False)):
        assert (await house.reach(task_id, "awaiting_review")).review == "Send it?"
        await house.tell(task_id, DecideReview(approved=approved, feedback="so be it"))
    assert (await house.reach(yes, "completed")).result == "sent"
    refused = await house.reach(no, "failed")
    assert refused.error is not None
    assert (refused.error.code, refused.error.message) == ("review_refused", "so be it")


async def test_under_confirm_nothing_acts_before_its_plan_is_approved(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.work(Simulator(effects=effects))
    steps = {"tool": "search"}, {"complete": "found"}
    yes, no = [await house.submit(command=scenario(*steps, mode="confirm")) for _ in range(2)]
    for task_id in (yes, no):
        assert [step.tool for step in (await house.reach(task_id, "awaiting_review")).plan] == ["search"]
    assert not effects.exists()
    await house.tell(no, DecideReview(approved=False))
    refused = await house.reach(no, "failed")
    assert refused.error is not None
    assert refused.error.code == "plan_refused"
    await house.tell(yes, DecideReview(approved=True))
    assert (await house.reach(yes, "completed")).result == "found"
    assert effects.read_text() == f"{yes} {yes}:1\n"


async def test_a_dry_run_ends_with_its_plan(house: House, tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    house.work(Simulator(effects=effects))
    task_id = await house.submit(command=scenario({"say": "I would"}, {"tool": "search"}, mode="dry_run"))
    task = await house.reach(task_id, "completed")
    assert [step.tool for step in task.plan] == ["search"]
    assert not effects.exists()


def acts_unplanned(acted: list[str]) -> Own:
    def work(_: Brief) -> Work:
        yield from say("I just do it.")
        yield from call_tool("send", None, lambda act: acted.append(act.idempotency_key))
        return "sent"

    return Own(work)


async def test_an_agent_that_reaches_a_tool_without_a_plan_has_proposed_just_that(house: House) -> None:
    acted: list[str] = []
    house.work(acts_unplanned(acted))
    dry = await house.submit(command=told(mode="dry_run"))
    assert [step.tool for step in (await house.reach(dry, "completed")).plan] == ["send"]
    yes, no = [await house.submit(command=told(mode="confirm")) for _ in range(2)]
    for task_id, approved in ((yes, True), (no, False)):
        assert [step.tool for step in (await house.reach(task_id, "awaiting_review")).plan] == ["send"]
        assert acted == ([f"{yes}:2"] if not approved else [])
        await house.tell(task_id, DecideReview(approved=approved))
        await house.reach(task_id, lambda task: task.ended)
    assert acted == [f"{yes}:2"]
    assert (await house.reach(yes, "completed")).result == "sent"
    refused = await house.reach(no, "failed")
    assert refused.error is not None
    assert refused.error.code == "plan_refused"


async def test_a_refused_plan_lets_nothing_act_either(house: House) -> None:
    acted: list[str] = []

    def work(_: Brief) -> Work:
        yield from propose((PlannedStep(tool="send"),))  # whatever they say
        yield from call_tool("send", None, lambda act: acted.append(act.idempotency_key))
        return "sent"

    house.work(Own(work))
    task_id = await house.submit(command=told(mode="confirm"))
    await house.reach(task_id, "awaiting_review")
    await house.tell(task_id, DecideReview(approved=False))
    await house.reach(task_id, lambda task: task.status == "awaiting_review" and task.asked_step == 1)
    assert acted == []
    await house.tell(task_id, DecideReview(approved=True))
    await house.reach(task_id, "completed")
    assert acted == [f"{task_id}:2"]


async def test_a_dry_run_that_died_between_its_plan_and_its_end_does_not_act_later(house: House) -> None:
    acted: list[str] = []
    task_id = await house.submit(command=told(mode="dry_run"))
    await house.tell(task_id, StartRun(run=1, worker="dead"))
    await house.tell(task_id, ProposePlan(run=1, step=0, plan=(PlannedStep(tool="send"),)))
    await announce_lost(house.connection, "dead")

    def work(_: Brief) -> Work:
        yield from propose((PlannedStep(tool="send"),))
        yield from call_tool("send", None, lambda act: acted.append(act.idempotency_key))
        return "sent"

    house.work(Own(work))
    assert (await house.reach(task_id, "completed")).run == 2
    assert acted == []


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


async def test_a_pause_that_is_taken_back_just_as_the_worker_obeys_it_does_not_set_the_run_down(house: House) -> None:
    queue = await Queue.open(house.connection)
    await queue.offer(WorkItem(owner=ANN, task_id=new_task(), agent="nobody"))
    lease = await queue.take("nobody", wait_s=5.0)
    assert lease is not None
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
    await queue.close()


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


async def test_what_the_user_says_unasked_is_read_once(house: House) -> None:
    seen: list[list[str]] = []

    def work(_: Brief) -> Work:
        seen.append((yield from read_inbox()))
        yield from ask("Go on?")
        seen.append((yield from read_inbox()))
        seen.append((yield from read_inbox()))
        return None

    task_id = await house.submit(command=told())
    await house.tell(task_id, ReceiveInput(text="one"))
    house.work(Own(work))
    await house.reach(task_id, "waiting_for_input")
    await house.tell(task_id, RequestPause())
    await house.tell(task_id, ReceiveInput(text="yes"))
    await house.tell(task_id, ReceiveInput(text="two"))
    await house.tell(task_id, ReceiveInput(text="three"))
    await house.tell(task_id, ResumeTask())
    await house.reach(task_id, "completed")
    assert seen == [["one"], ["one"], ["two", "three"], []]


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
        await house.tell(task_id, StartRun(run=1, worker="dead"))
        await house.tell(task_id, StartStep(run=1, step=0, kind="tool", name="pay"))
        return task_id

    once, again = await cut_off(fail=True), await cut_off(fail=False)
    await announce_lost(house.connection, "dead")
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


async def test_a_plan_without_need_of_approval_is_shown_and_gone_on_from(house: House) -> None:
    house.work()
    task_id = await house.submit({"plan": ["search"]}, {"tool": "search"}, {"complete": "done"})
    task = await house.reach(task_id, "completed")
    assert (task.run, [step.tool for step in task.plan]) == (1, ["search"])
    kinds = [type(fact) for fact in await house.facts(task_id)]
    assert kinds.count(PlanProposed) == 1
    assert StepFinished not in kinds
