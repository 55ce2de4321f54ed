"""One run of one task: an agent's steps turned into commands, its recorded answers fed back to it."""

import asyncio
import hashlib
import inspect
import random
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import assert_never

import msgspec
import structlog
from msgspec import Struct

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
    Verdict,
    Work,
    kind_of,
)
from app.attached import Attached
from app.decide import (
    CompleteTask,
    FailRun,
    FailTask,
    FinishStep,
    PauseTask,
    ProducePartial,
    ProposePlan,
    Rejected,
    RequestInput,
    RequestReview,
    StartStep,
    WorkerCommand,
)
from app.tasks import Cause, Done, Tasks
from eventstore.events import Json, PlannedStep, Problem, Usage
from eventstore.log import LogError, LogUnavailable, OutcomeUnknown
from eventstore.queue import Lease
from projections.steps import Answered, Steps

log = structlog.stdlib.get_logger()

FLUSH_S = 0.05
FLUSH_BYTES = 2048
FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 60.0
MAX_MESSAGE = 2000
MAX_ASKED = 128 * 1024
"""Bytes of a question, a review's subject or a plan."""
MAX_OUTPUT = 16 * 1024 * 1024
"""Bytes of a tool's output, or of a result."""


class SetDown(Exception):
    """This run goes no further. `finished`: its item may leave the queue; else it is dropped, unsaid."""

    def __init__(self, why: str, *, finished: bool) -> None:
        super().__init__(why)
        self.finished = finished


class Answer(Struct, frozen=True):
    """What the agent is sent, or what is thrown into it."""

    value: Json = None
    error: Problem | None = None


class Run:
    """A worker's hold on one task, from its `TaskStarted` to its set-down or end."""

    def __init__(
        self, tasks: Tasks, attached: Attached, agent: Agent, lease: Lease, cause: Cause, executor: Executor
    ) -> None:
        self._tasks = tasks
        self._attached = attached
        self._agent = agent
        self._lease = lease
        self._cause = cause
        self._executor = executor
        self._run = attached.task.run
        self._steps = Steps()
        self._seen = 0
        self._next = 0

    async def play(self) -> None:
        """Run the agent to its end, its next question, or its set-down. Raises SetDown, LogError."""
        await self._read_on()
        agent_failed: AgentFailed | None = None
        try:
            result = await self._drive(self._agent.run(await self._brief()))
        except AgentFailed as failed:
            agent_failed = failed
        except (SetDown, LogError, asyncio.CancelledError):
            raise
        except Exception as error:
            await self._broke(error)
        else:
            await self._say(CompleteTask(run=self._run, result=result), ending=True)
        if agent_failed is not None:
            fail = FailTask(run=self._run, code=agent_failed.code, message=agent_failed.message[:MAX_MESSAGE])
            await self._say(fail, ending=True)

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
                    return _result(end.value)
                await self._plan_first(step)
                answer = await self._answer(step)
        finally:
            work.close()

    async def _brief(self) -> Brief:
        task = self._attached.task
        large = await self._tasks.large_fields(task)
        return Brief(
            task_id=task.task_id,
            input=large.get("input", task.input),
            title=task.title,
            session_id=task.session_id,
            mode=task.mode,
            approval_mode=task.approval_mode,
            metadata=task.metadata,
        )

    async def _plan_first(self, step: Step) -> None:
        """Under `confirm` and `dry_run` nothing acts before a plan: an agent that would has proposed just that."""
        task = self._attached.task
        if task.approval_mode == "auto" or not isinstance(step, CallTool) or self._planned_before(self._next):
            return
        verdict = await self._answer(Plan(steps=(PlannedStep(tool=step.name),)))
        if not _approved(verdict):
            raise AgentFailed("plan_refused", f"the plan to use {step.name} was refused")

    def _planned_before(self, number: int) -> bool:
        return any(step < number and answered.kind == "plan" for step, answered in self._steps.answered.items())

    async def _answer(self, step: Step) -> Answer:
        number, self._next = self._next, self._next + 1
        digest = _digest(step)
        known = self._steps.answered.get(number)
        if known is not None:
            self._check_same(number, step, digest, known)
            return Answer(known.answer, known.error)
        await self._may_begin()
        if isinstance(step, Ask | Review | Plan) and len(msgspec.json.encode(step)) > MAX_ASKED:
            raise AgentFailed("too_large", f"step {number} asks more than {MAX_ASKED} bytes")
        match step:
            case CallTool():
                return await self._act(number, step, digest)
            case Say():
                return await self._speak(number, step, digest)
            case Ask(question=question):
                ask = RequestInput(run=self._run, step=number, question=question, input_sha256=digest)
                await self._say(ask, ending=True)
                raise SetDown("waits for input", finished=True)
            case Review(subject=subject):
                review = RequestReview(run=self._run, step=number, subject=subject, input_sha256=digest)
                await self._say(review, ending=True)
                raise SetDown("awaits review", finished=True)
            case Plan(steps=steps):
                return await self._propose(ProposePlan(run=self._run, step=number, plan=steps, input_sha256=digest))
            case ReadInbox():
                await self._read_on()
                return await self._note(number, step, digest, list[Json](self._steps.inbox[self._steps.inbox_read :]))
            case ReadClock():
                return await self._note(number, step, digest, datetime.now(UTC).isoformat())
            case DrawRandom():
                return await self._note(number, step, digest, random.random())
            case Sleep(seconds=seconds):
                await self._attached.until(lambda task: task.ended or task.run != self._run, seconds)
                return await self._note(number, step, digest, None, took=seconds)
            case ReportUsage(usage=usage):
                return await self._note(number, step, digest, None, usage=usage)
            case _:
                assert_never(step)

    async def _may_begin(self) -> None:
        """A step begins only under a live lease, and not while a pause is wished for."""
        if not self._lease.alive():
            raise SetDown("the lease is late", finished=False)
        if self._attached.task.pause_requested:
            await self._say(PauseTask(run=self._run), ending=True)
            raise SetDown("paused", finished=True)

    async def _act(self, number: int, step: CallTool, digest: str) -> Answer:
        started_before = number in self._steps.started
        if started_before and step.after_crash == "fail":
            raise AgentFailed("step_outcome_unknown", f"step {number} ({step.name}) was cut off, and may not run twice")
        start = StartStep(
            run=self._run, step=number, kind=step.kind, name=step.name, input=step.input, input_sha256=digest
        )
        await self._say(start)
        began = time.monotonic()
        output: Json = None
        error: Problem | None = None
        act = Act(idempotency_key=f"{self._attached.task_id}:{number}", started_before=started_before)
        try:
            output = await self._call(step, act)
            if len(msgspec.json.encode(output)) > MAX_OUTPUT:
                output, error = None, Problem(code="too_large", message=f"its output is over {MAX_OUTPUT} bytes")
        except StepFailed as failed:
            error = failed.problem
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
        await self._say(finish)
        return Answer(output, error)

    async def _call(self, step: CallTool, act: Act) -> Json:
        if inspect.iscoroutinefunction(step.act):
            return _plain(await step.act(act))
        output = await asyncio.get_running_loop().run_in_executor(self._executor, step.act, act)
        return _plain(await output if inspect.isawaitable(output) else output)

    async def _speak(self, number: int, step: Say, digest: str) -> Answer:
        """Stream the text, gathered: a flush every 50 ms or 2 KiB, and before the step's end."""
        began = time.monotonic()
        offset = 0
        async for text in _gathered(step):
            await self._say(ProducePartial(run=self._run, step=number, offset=offset, text=text))
            offset += len(text)
        return await self._note(number, step, digest, None, took=round(time.monotonic() - began, 6))

    async def _propose(self, command: ProposePlan) -> Answer:
        done = await self._say(command, ending=True)
        if done.task.status != "running":
            raise SetDown("its plan awaits approval", finished=True)
        if done.task.approval_mode == "dry_run":
            await self._say(CompleteTask(run=self._run), ending=True)
            raise SetDown("dry run", finished=True)
        answer: Json = {"approved": True}
        self._steps.answered[command.step] = Answered(kind="plan", sha256=command.input_sha256, answer=answer)
        return Answer(answer)

    async def _note(
        self, number: int, step: Step, digest: str, output: Json, *, took: float = 0.0, usage: Usage | None = None
    ) -> Answer:
        note = FinishStep(
            run=self._run,
            step=number,
            kind=kind_of(step),
            output=output,
            input_sha256=digest,
            took=took,
            usage=usage,
        )
        await self._say(note)
        return Answer(output)

    async def _say(self, command: WorkerCommand, *, ending: bool = False) -> Done:
        """Execute, and insist while the outcome is unknown; not heard any more: SetDown.

        `ending`: the command may itself set the task down or end it.
        """
        while True:
            try:
                done = await self._tasks.execute(self._attached.owner, self._attached.task_id, command, self._cause)
                break
            except (OutcomeUnknown, LogUnavailable) as error:
                # What was done is worth writing even under a late lease: if the run was taken over, it is refused.
                if not self._lease.alive() and not isinstance(command, FinishStep):
                    raise SetDown("the log is away, and the lease late", finished=False) from error
                log.info("run.insists", task_id=self._attached.task_id, error=str(error))
        if isinstance(done, Rejected):
            raise SetDown(f"{done.reason}: {done.detail}", finished=done.reason == "ended")
        if not ending and (done.task.status != "running" or done.task.run != self._run):
            raise SetDown(f"the task is {done.task.status}", finished=done.task.run == self._run)
        return done

    async def _broke(self, error: Exception) -> None:
        self._tasks.metrics.failed_runs.labels(self._agent.name).inc()
        log.error("run.broke", task_id=self._attached.task_id, run=self._run, exc_info=error)
        wait_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2**self._attached.task.failures) * random.uniform(0.8, 1.2)
        problem = Problem(code="agent_error", message=f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
        retry_at = datetime.now(UTC) + timedelta(seconds=wait_s)
        await self._say(FailRun(run=self._run, error=problem, retry_at=retry_at), ending=True)

    async def _read_on(self) -> None:
        async for sequence, fact in self._tasks.whole_facts(self._attached, after=self._seen):
            self._steps.take_in(fact)
            self._seen = sequence

    def _check_same(self, number: int, step: Step, digest: str, known: Answered) -> None:
        same = kind_of(step) == known.kind and (not isinstance(step, CallTool) or step.name == known.name)
        if same and known.sha256 in ("", digest):
            return
        asked, recorded = f"{kind_of(step)} {getattr(step, 'name', '')}", f"{known.kind} {known.name}"
        detail = f"step {number} was {recorded.strip()!r} and is now {asked.strip()!r}"
        if asked == recorded:
            detail = f"step {number}, {asked.strip()!r}, is asked otherwise than before"
        raise AgentFailed("agent_changed", detail)


def _result(value: object) -> str | None:
    if value is None:
        return None
    result = str(value)
    if len(result.encode(errors="replace")) > MAX_OUTPUT:
        raise AgentFailed("too_large", f"the result is over {MAX_OUTPUT} bytes")
    return result


_canonical = msgspec.json.Encoder(order="deterministic")


def _digest(step: Step) -> str:
    """SHA-256 of what the step asks: the same in every run of the same agent."""
    match step:
        case CallTool(name=name, input=asked):
            wish: list[object] = [name, asked]
        case Say(text=text):
            wish = [text]
        case Ask(question=question):
            wish = [question]
        case Review(subject=subject):
            wish = [subject]
        case Plan(steps=steps):
            wish = [steps]
        case Sleep(seconds=seconds):
            wish = [seconds]
        case ReportUsage(usage=usage):
            wish = [usage]
        case ReadInbox() | ReadClock() | DrawRandom():
            wish = []
        case _:
            assert_never(step)
    return hashlib.sha256(_canonical.encode(wish)).hexdigest()


def _plain(output: object) -> Json:
    """The output as the log will give it back, so that the first run sees what every later one will."""
    return msgspec.json.decode(msgspec.json.encode(output))


def _approved(answer: Answer) -> bool:
    return msgspec.convert(answer.value, type=Verdict).approved


async def _gathered(step: Say) -> AsyncGenerator[str]:
    waiting = ""
    flushed_at = time.monotonic()
    for piece in step.pieces or (step.text,):
        waiting += piece
        while len(waiting.encode()) > FLUSH_BYTES:
            cut = waiting.encode()[:FLUSH_BYTES].decode(errors="ignore")
            yield cut
            waiting = waiting[len(cut) :]
            flushed_at = time.monotonic()
        if step.every_s > 0:
            if waiting and time.monotonic() + step.every_s - flushed_at >= FLUSH_S:
                yield waiting
                waiting, flushed_at = "", time.monotonic()
            await asyncio.sleep(step.every_s)
    if waiting:
        yield waiting
