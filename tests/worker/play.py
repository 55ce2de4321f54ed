"""Plays an agent without a worker: steps that act really act, a person's replies come from the test.

A replay feeds the first recorded answers again, as a worker does after a crash, and must meet the same steps.
"""

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec
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
    Review,
    Say,
    Step,
    StepFailed,
    Verdict,
    Work,
    kind_of,
)
from eventstore.events import Json, Problem, StepKind, TaskId

Replies = Mapping[StepKind, Sequence[Json]]
"""What a person (or the world) answers, by the kind of step, in order; then the defaults of `_reply`."""

APPROVED: Json = msgspec.to_builtins(Verdict(approved=True))


class Answered(Struct, frozen=True, kw_only=True):
    """One recorded step: what was asked, as JSON, and what came of it, as JSON."""

    asked: bytes
    output: bytes = b"null"
    error: Problem | None = None


class Played(Struct, frozen=True, kw_only=True):
    """A whole run."""

    steps: tuple[Step, ...]
    recorded: tuple[Answered, ...]
    result: str | None = None
    failed: Problem | None = None

    @property
    def said(self) -> str:
        """All text for the reader."""
        return "".join(step.text for step in self.steps if isinstance(step, Say))

    @property
    def tools(self) -> list[str]:
        """The names of the tools used, in order."""
        return [step.name for step in self.steps if isinstance(step, CallTool)]

    def of(self, kind: StepKind) -> list[Step]:
        """The steps of one kind."""
        return [step for step in self.steps if kind_of(step) == kind]

    def answers(self, kind: StepKind) -> list[Json]:
        """What the steps of one kind were answered."""
        pairs = zip(self.steps, self.recorded, strict=True)
        return [msgspec.json.decode(answered.output) for step, answered in pairs if kind_of(step) == kind]


def brief(given: Json = None, *, task_id: str = "task_play") -> Brief:
    """A task with this input."""
    return Brief(task_id=TaskId(task_id), input=given)


def asked(step: Step) -> bytes:
    """What a step asks, as it would be recorded: all of it but the function that acts."""
    fields: dict[str, Json] = {name: getattr(step, name) for name in step.__struct_fields__ if name != "act"}
    return msgspec.json.encode([kind_of(step), fields])


def play(
    agent: Agent,
    told: Brief,
    replies: Replies | None = None,
    *,
    recorded: Sequence[Answered] = (),
    started_before: bool = False,
) -> Played:
    """Run the agent to its end; where it meets `recorded` it is fed those and must ask the same."""
    return asyncio.run(_play(agent, told, replies or {}, recorded, started_before=started_before))


def replay(agent: Agent, told: Brief, first: Played, known: int, replies: Replies | None = None) -> None:
    """Run again with the first `known` answers on record: same steps, same end."""
    left: dict[StepKind, Sequence[Json]] = {
        kind: given[_count(first, kind, known) :] for kind, given in (replies or {}).items()
    }
    again = play(agent, told, left, recorded=first.recorded[:known])
    assert [asked(step) for step in again.steps] == [asked(step) for step in first.steps]
    assert (again.result, again.failed) == (first.result, first.failed)


def _count(played: Played, kind: StepKind, known: int) -> int:
    return sum(1 for step in played.steps[:known] if kind_of(step) == kind)


async def _play(
    agent: Agent, told: Brief, replies: Replies, recorded: Sequence[Answered], *, started_before: bool
) -> Played:
    steps: list[Step] = []
    answers: list[Answered] = []
    waiting: dict[StepKind, list[Json]] = {kind: list(given) for kind, given in replies.items()}
    answer: Answered | None = None
    work = None
    try:
        work = agent.run(told)
        while True:
            step = next(work) if answer is None else _feed(work, answer)
            number = len(steps)
            steps.append(step)
            if number < len(recorded):
                answer = recorded[number]
                assert asked(step) == answer.asked, f"step {number} is another one"
            else:
                answer = await _answer(step, waiting, f"{told.task_id}:{number}", started_before=started_before)
            answers.append(answer)
    except StopIteration as end:
        result = msgspec.convert(end.value, type=str | None)
        return Played(steps=tuple(steps), recorded=tuple(answers), result=result)
    except AgentFailed as error:
        failed = Problem(code=error.code, message=error.message)
        return Played(steps=tuple(steps), recorded=tuple(answers), failed=failed)
    finally:
        if work is not None:
            work.close()


def _feed(work: Work, answer: Answered) -> Step:
    if answer.error is not None:
        return work.throw(StepFailed(answer.error.code, answer.error.message))
    return work.send(msgspec.json.decode(answer.output))


async def _answer(step: Step, waiting: dict[StepKind, list[Json]], key: str, *, started_before: bool) -> Answered:
    if isinstance(step, CallTool):
        return await _act(step, Act(idempotency_key=key, started_before=started_before))
    if isinstance(step, Say):
        assert not step.pieces or "".join(step.pieces) == step.text
    given = waiting.get(kind_of(step))
    output = given.pop(0) if given else _reply(step)
    return Answered(asked=asked(step), output=msgspec.json.encode(output))


async def _act(step: CallTool, act: Act) -> Answered:
    try:
        if inspect.iscoroutinefunction(step.act):
            output: Json = await step.act(act)
        else:
            output = await asyncio.to_thread(step.act, act)
    except StepFailed as error:
        return Answered(asked=asked(step), error=error.problem)
    return Answered(asked=asked(step), output=msgspec.json.encode(output))


def _reply(step: Step) -> Json:
    match step:
        case Ask():
            return "yes"
        case Plan() | Review():
            return APPROVED
        case ReadInbox():
            return []
        case ReadClock():
            return datetime(2026, 1, 1, tzinfo=UTC).isoformat()
        case DrawRandom():
            return 0.5
        case _:
            return None
