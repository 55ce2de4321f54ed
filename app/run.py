"""One run of one task: an agent's steps turned into commands, its recorded answers fed back to it."""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from typing import assert_never

import structlog

from app.agents.agent import (
    Act,
    Agent,
    AgentFailed,
    Ask,
    Brief,
    CallTool,
    DrawRandom,
    Plan,
    ReadClock,
    ReadInbox,
    ReportUsage,
    Review,
    Say,
    Sleep,
    Step,
    StepFailed,
    Work,
)
from app.answers import (
    MAX_MESSAGE,
    Answer,
    approved,
    check_asked,
    check_same,
    digest_of,
    encodable,
    gathered,
    result_of,
)
from app.commands import (
    CompleteTask,
    FailRun,
    FailTask,
    FinishStep,
    ProducePartial,
    ProposePlan,
    RequestInput,
    RequestReview,
    StartStep,
)
from app.hold import Hold, SetDown, insist
from app.tools import Tools
from eventstore.codec import Unreadable
from eventstore.events import Json, PlannedStep, Problem, Usage
from eventstore.log import LogError, TooLarge
from projections.steps import Answered
from projections.task import metadata_of

log = structlog.stdlib.get_logger()

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0


class Run:
    """An agent at its work, from its first step in this run to its end, its next question, or its set-down."""

    def __init__(self, hold: Hold, agent: Agent, tools: Tools) -> None:
        self._hold = hold
        self._agent = agent
        self._tools = tools
        self._run = hold.run
        self._next = 0

    async def play(self) -> None:
        """Run the agent to its end, its next question, or its set-down. Raises SetDown, LogError."""
        await self._hold.read_on()
        agent_failed: AgentFailed | None = None
        try:
            result = await self._drive(self._agent.run(await self._brief()))
        except AgentFailed as failed:
            agent_failed = failed
        except (TooLarge, Unreadable) as error:
            # What it says can't be written; said again in another run, it could be no more.
            agent_failed = AgentFailed("unwritable", str(error))
        except (SetDown, LogError, asyncio.CancelledError):
            raise
        except Exception as error:
            await self._broke(error)
        else:
            await self._hold.say(CompleteTask(run=self._run, result=result), ending=True)
        if agent_failed is not None:
            code, message = encodable(agent_failed.code), encodable(agent_failed.message[:MAX_MESSAGE])
            await self._hold.say(FailTask(run=self._run, code=code, message=message), ending=True)

    async def _drive(self, work: Work) -> str | None:
        """Send answers in, take steps out."""
        answer: Answer | None = None
        try:
            while True:
                try:
                    if answer is None:
                        step = next(work)
                    elif answer.error is not None:
                        step = work.throw(StepFailed(answer.error.code, answer.error.message))
                    else:
                        step = work.send(answer.value)
                except StopIteration as end:
                    self._check_all_asked()
                    return result_of(end.value)
                await self._plan_first(step)
                answer = await self._answer(step)
        finally:
            self._close(work)

    def _close(self, work: Work) -> None:
        try:
            work.close()
        except Exception as error:
            # An agent that yields, or raises, while it is being closed: what ended its run must not be forgotten.
            log.warning("run.agent_does_not_close", task_id=self._hold.task_id, error=str(error))

    def _check_all_asked(self) -> None:
        left = [number for number in self._hold.steps.answered if number >= self._next]
        if left:
            raise AgentFailed("agent_changed", f"the agent ends before step {min(left)}, which is on record")

    async def _brief(self) -> Brief:
        task = self._hold.task
        large = await self._hold.large_fields()
        return Brief(
            task_id=task.task_id,
            input=large.get("input", task.input),
            title=task.title,
            session_id=task.session_id,
            mode=task.mode,
            approval_mode=task.approval_mode,
            metadata=metadata_of(task, large),
            conversation=await self._hold.conversation(),
            files=tuple(map(self._hold.file, task.files)),
        )

    async def _plan_first(self, step: Step) -> None:
        """Under `confirm` and `dry_run` nothing acts before a plan: an agent that would has proposed just that."""
        if (
            self._hold.task.approval_mode == "auto"
            or not isinstance(step, CallTool)
            or self._planned_before(self._next)
        ):
            return
        verdict = await self._answer(Plan(steps=(PlannedStep(tool=step.name),)))
        if not approved(verdict.value):
            raise AgentFailed("plan_refused", f"the plan to use {step.name} was refused")

    def _planned_before(self, number: int) -> bool:
        return any(
            step < number and answered.kind == "plan" and approved(answered.answer)
            for step, answered in self._hold.steps.answered.items()
        )

    async def _answer(self, step: Step) -> Answer:
        number, self._next = self._next, self._next + 1
        digest = digest_of(step)
        known = self._hold.steps.answered.get(number)
        if known is not None:
            check_same(number, step, digest, known)
            if isinstance(step, Plan):
                await self._end_dry_run()
            return Answer(known.answer, known.error)
        await self._hold.may_begin()
        match step:
            case CallTool():
                return await self._act(number, step, digest)
            case Say():
                return await self._speak(number, step, digest)
            case Ask() | Review() | Plan():
                return await self._put(number, step, digest)
            case ReadInbox():
                await self._hold.read_on()
                steps = self._hold.steps
                return await self._note(number, step, digest, list[Json](steps.inbox[steps.inbox_read :]))
            case ReadClock():
                return await self._note(number, step, digest, datetime.now(UTC).isoformat())
            case DrawRandom():
                return await self._note(number, step, digest, random.random())
            case Sleep(seconds=seconds):
                await self._hold.sleep(seconds)
                return await self._note(number, step, digest, None, took=seconds)
            case ReportUsage(usage=usage):
                return await self._note(number, step, digest, None, usage=usage)
            case _:
                assert_never(step)

    async def _check_allowed(self, step: CallTool) -> None:
        """Raises AgentFailed where this tool may not be used: by its owner's word, or for a question."""
        task = self._hold.task
        if task.reads_only and not step.read_only:
            raise AgentFailed("tool_not_read_only", f"{step.name} may change something, and nothing was ordered")
        if step.kind == "tool" and await insist(lambda: self._tools.disabled(task.owner, step.name), self._hold.lease):
            raise AgentFailed("tool_disabled", f"the tool {step.name} is switched off")

    async def _act(self, number: int, step: CallTool, digest: str) -> Answer:
        await self._check_allowed(step)
        started_before = number in self._hold.steps.started
        if started_before and step.after_crash == "fail":
            raise AgentFailed("step_outcome_unknown", f"step {number} ({step.name}) was cut off, and may not run twice")
        start = StartStep(
            run=self._run, step=number, kind=step.kind, name=step.name, input=step.input, input_sha256=digest
        )
        done = await self._hold.say(start)
        if done.task.steps > number:
            raise SetDown(f"step {number} is on record already", finished=False)  # a recorded step never runs again
        began = time.monotonic()
        output: Json = None
        error: Problem | None = None
        act = Act(idempotency_key=f"{self._hold.task_id}:{number}", started_before=started_before)
        try:
            answered, output = await self._tools.call(step, act, self._hold.over())
            if not answered:
                raise SetDown("the task is over, or someone else's", finished=self._hold.task.ended)
        except StepFailed as failed:
            error = Problem(code=encodable(failed.problem.code), message=encodable(failed.problem.message))
        finish = FinishStep(
            run=self._run,
            step=number,
            kind=step.kind,
            name=step.name,
            output=output,
            error=error,
            took=round(time.monotonic() - began, 6),
            input_sha256=digest,
        )
        await self._hold.say(finish)
        return Answer(output, error)

    async def _speak(self, number: int, step: Say, digest: str) -> Answer:
        """Stream the text, gathered."""
        began = time.monotonic()
        offset = 0
        async for text in gathered(step, self._hold.sleep):
            await self._hold.say(ProducePartial(run=self._run, step=number, offset=offset, text=text))
            offset += len(text)
        return await self._note(number, step, digest, None, took=round(time.monotonic() - began, 6))

    async def _put(self, number: int, step: Ask | Review | Plan, digest: str) -> Answer:
        """Ask a person. The run ends here, but for a plan that nobody needs to approve."""
        check_asked(number, step)
        match step:
            case Ask(question=question):
                ask = RequestInput(run=self._run, step=number, question=question, input_sha256=digest)
                await self._hold.say(ask, ending=True)
                raise SetDown("waits for input", finished=True)
            case Review(subject=subject):
                review = RequestReview(run=self._run, step=number, subject=subject, input_sha256=digest)
                await self._hold.say(review, ending=True)
                raise SetDown("awaits review", finished=True)
            case Plan(steps=steps):
                plan = ProposePlan(run=self._run, step=number, plan=steps, input_sha256=digest)
                done = await self._hold.say(plan, ending=True)
            case _:
                assert_never(step)
        if done.task.status != "running":
            raise SetDown("its plan awaits approval", finished=True)
        await self._end_dry_run()
        answer: Json = {"approved": True}
        self._hold.steps.answered[number] = Answered(kind="plan", sha256=digest, answer=answer)
        return Answer(answer)

    async def _end_dry_run(self) -> None:
        """A dry run is over once its plan is on record, also for a run that finds it there."""
        if self._hold.task.approval_mode == "dry_run":
            await self._hold.say(CompleteTask(run=self._run), ending=True)
            raise SetDown("dry run", finished=True)

    async def _note(
        self, number: int, step: Step, digest: str, output: Json, *, took: float = 0.0, usage: Usage | None = None
    ) -> Answer:
        await self._hold.note(number, step, digest, output, took=took, usage=usage)
        return Answer(output)

    async def _broke(self, error: Exception) -> None:
        self._hold.count_failure(self._agent.name)
        log.error("run.broke", task_id=self._hold.task_id, run=self._run, exc_info=error)
        wait_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**self._hold.task.failures) * random.uniform(0.8, 1.2)
        message = encodable(f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
        retry_at = datetime.now(UTC) + timedelta(seconds=wait_s)
        fail = FailRun(run=self._run, error=Problem(code="agent_error", message=message), retry_at=retry_at)
        await self._hold.say(fail, ending=True)
