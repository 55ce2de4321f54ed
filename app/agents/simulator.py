"""The agent that plays a scenario: any life that a task can have, at any pace, told as JSON.

    {"steps": [{"say": "Hello"}, {"tool": "search", "takes": 0.5}, {"ask": "For whom?"}, {"complete": "For {answer}"}]}

What a scenario may say is in `scenario.py`.
"""

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import assert_never

from app.agents.agent import (
    Act,
    AgentFailed,
    Brief,
    CallTool,
    File,
    Say,
    Step,
    Work,
    ask,
    propose,
    report_usage,
    review,
    sleep,
)
from app.agents.scenario import (
    MAX_BYTES,
    READ_FILE,
    AskReview,
    AskUser,
    Complete,
    CountUsage,
    Crash,
    Fail,
    ReadFile,
    SayText,
    Scenario,
    ShowPlan,
    UseTool,
    Wait,
    object_of,
    read_scenario,
    unrolled,
)
from eventstore.events import Json, PlannedStep, TaskId

MAX_SHOWN = 500
"""Tools that a plan made from a scenario names; the last says how many more there are."""


class Simulator:
    """Plays a scenario. `effects` is the operator's: a file to which every tool that acts appends one line, the task's
    id and the step's idempotency key, so that a test can count from outside what really ran. `crashes`: whether a
    scenario may kill its worker, and so hurt the tasks of others."""

    name = "simulator"
    description = "Plays a scenario given as JSON: any life that a task can have, at any pace."

    def __init__(self, *, effects: Path | None = None, crashes: bool = True, limit: int = 32) -> None:
        self.effects = effects
        self.crashes = crashes
        self.limit = limit

    def run(self, brief: Brief) -> Work:
        """Play the task's scenario. Raises AgentFailed (`bad_scenario`) at the first step."""
        scenario = read_scenario(_scenario_of(brief), brief.files)
        answer: str | None = None
        said: list[str] = []
        if brief.approval_mode != "auto" and not _plans_before_it_acts(scenario):
            yield from _propose(_tools_of(scenario))
            if brief.approval_mode == "dry_run":
                return None
        for step in unrolled(scenario):
            match step:
                case SayText():
                    said.append(step.say)
                    yield _say(step)
                case UseTool():
                    yield self._use(step, brief.task_id)
                case ReadFile(read=name):
                    yield _read(name, brief.files)
                case Wait(sleep=seconds):
                    yield from sleep(seconds)
                case AskUser(ask=question):
                    answer = yield from ask(question)
                case AskReview(review=subject):
                    verdict = yield from review(subject)
                    if not verdict.approved:
                        raise AgentFailed("review_refused", verdict.feedback or f"not approved: {subject}")
                case ShowPlan(plan=plan):
                    yield from _propose(tuple(PlannedStep(tool=s) if isinstance(s, str) else s for s in plan))
                    if brief.approval_mode == "dry_run":
                        return None
                case CountUsage(usage=usage):
                    yield from report_usage(usage)
                case Fail(fail=failure):
                    raise AgentFailed(failure.code, failure.message)
                case Crash():
                    if not self.crashes:
                        raise AgentFailed("crash_turned_off", "crashes are turned off in this deployment")
                    yield CallTool(kind="effect", name="crash", input=None, act=_crash)
                case Complete(complete=result):
                    return None if result is None else _filled(result, answer)
                case _:
                    assert_never(step)
        return "".join(said)

    def _use(self, step: UseTool, task_id: TaskId) -> CallTool:
        async def act(told: Act) -> Json:
            if self.effects is not None:
                _append(self.effects, f"{task_id} {told.idempotency_key}\n")
            await asyncio.sleep(step.takes)
            return step.output

        return CallTool(name=step.tool, input=step.input, act=act, read_only=step.read_only)


def _scenario_of(brief: Brief) -> Json:
    """The task's input, or, where a client has only words for an input, its context's `scenario`."""
    context = object_of(brief.metadata.get("context")) or {}
    return context.get("scenario", brief.input)


def _plans_before_it_acts(scenario: Scenario) -> bool:
    """Does it show a plan of its own in time? Nothing may act before one, except under approval mode `auto`."""
    first = next((step for step in unrolled(scenario) if isinstance(step, ShowPlan | UseTool | ReadFile | Crash)), None)
    return isinstance(first, ShowPlan)


def _tools_of(scenario: Scenario) -> tuple[PlannedStep, ...]:
    steps = (step for step in unrolled(scenario) if isinstance(step, UseTool | ReadFile))
    tools = [step.tool if isinstance(step, UseTool) else READ_FILE for step in steps]
    shown = [PlannedStep(tool=tool) for tool in tools[:MAX_SHOWN]]
    if len(tools) > MAX_SHOWN:
        shown[-1] = PlannedStep(tool=tools[MAX_SHOWN - 1], why=f"and {len(tools) - MAX_SHOWN} more steps with tools")
    return tuple(shown)


def _propose(steps: tuple[PlannedStep, ...]) -> Generator[Step, Json, None]:
    verdict = yield from propose(steps)
    if not verdict.approved:
        raise AgentFailed("plan_refused", verdict.feedback or "the plan was not approved")


def _read(name: str, files: Sequence[File]) -> CallTool:
    file = next((file for file in files if file.name == name), None)
    if file is None:
        raise AgentFailed("no_such_file", f"no file {name!r} came with the task")

    async def act(_: Act) -> Json:
        content = await file.read()
        return {"name": file.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    return CallTool(name=READ_FILE, input={"name": name}, act=act, read_only=True)


def _say(step: SayText) -> Say:
    """Long text comes in a few pieces, cut between words, so that it streams."""
    text = step.say
    size = max(32, len(text) // 16)
    pieces = tuple(re.findall(rf"(?s).{{1,{size}}}(?:\s+|\Z)|.{{1,{size}}}", text))
    return Say(text=text, pieces=pieces, every_s=step.takes / max(1, len(pieces)))


def _crash(told: Act) -> Json:
    if not told.started_before:
        os.kill(os.getpid(), signal.SIGKILL)
    return None


def _filled(result: str, answer: str | None) -> str:
    if answer is None:
        return result
    if len(result) + result.count("{answer}") * len(answer) > MAX_BYTES:
        raise AgentFailed("bad_scenario", f"the result, with the answer in it, is over {MAX_BYTES} characters")
    return result.replace("{answer}", answer)


def _append(path: Path, line: str) -> None:
    # One unbuffered write in append mode: lines of several workers do not mix, and a SIGKILL leaves none half done.
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())
