"""What an agent asks of people: questions, reviews, plans; and what they say unasked."""

from pathlib import Path

import pytest

from app.agents.agent import (
    Brief,
    Work,
    ask,
    call_tool,
    propose,
    read_inbox,
    say,
)
from app.agents.simulator import Simulator
from app.commands import DecideReview, ProposePlan, ReceiveInput, RequestPause, ResumeTask, StartRun
from eventstore.events import (
    PlannedStep,
    PlanProposed,
    StepFinished,
)
from tests.worker.agents import Own, scenario, told
from tests.worker.house import HASTY, House


@pytest.fixture(autouse=True)
async def dispatched(house: House) -> None:
    house.dispatch(HASTY)


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
    await house.offered("own")
    await house.tell(task_id, StartRun(run=1, worker="dead"))
    await house.tell(task_id, ProposePlan(run=1, step=0, plan=(PlannedStep(tool="send"),)))

    def work(_: Brief) -> Work:
        yield from propose((PlannedStep(tool="send"),))
        yield from call_tool("send", None, lambda act: acted.append(act.idempotency_key))
        return "sent"

    house.work(Own(work))
    assert (await house.reach(task_id, "completed")).run == 2
    assert acted == []


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


async def test_a_plan_without_need_of_approval_is_shown_and_gone_on_from(house: House) -> None:
    house.work()
    task_id = await house.submit({"plan": ["search"]}, {"tool": "search"}, {"complete": "done"})
    task = await house.reach(task_id, "completed")
    assert (task.run, [step.tool for step in task.plan]) == (1, ["search"])
    kinds = [type(fact) for fact in await house.facts(task_id)]
    assert kinds.count(PlanProposed) == 1
    assert StepFinished not in kinds
