"""The recorded steps of a task: what a new run feeds its agent instead of running them again. Pure."""

from typing import assert_never

import msgspec
from msgspec import Struct

from eventstore.events import (
    InputReceived,
    InputRequested,
    Json,
    PartialProduced,
    PauseRequested,
    PlanProposed,
    Problem,
    ReviewDecided,
    ReviewRequested,
    RunFailed,
    StepFinished,
    StepKind,
    StepStarted,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFact,
    TaskFailed,
    TaskPaused,
    TaskQueued,
    TaskResumed,
    TaskStarted,
    TaskTimedOut,
    ToolUsed,
    UnknownFact,
)


class Answered(Struct, frozen=True, kw_only=True):
    """A step that was answered. `sha256` is the digest of what the agent asked, to tell whether it still asks that."""

    kind: StepKind
    name: str = ""
    sha256: str = ""
    answer: Json = None
    error: Problem | None = None


class Steps:
    """The steps of one task, folded from its facts in order."""

    def __init__(self) -> None:
        self.answered: dict[int, Answered] = {}
        self.started: set[int] = set()
        self.inbox: list[str] = []
        self.inbox_read = 0
        self._asked: dict[int, Answered] = {}

    def take_in(self, fact: TaskFact | UnknownFact) -> None:
        """One more fact, whole (its large fields fetched from their blob)."""
        match fact:
            case StepStarted(step=step):
                self.started.add(step)
            case StepFinished(step=step):
                self.answered[step] = Answered(
                    kind=fact.kind, name=fact.name, sha256=fact.input_sha256, answer=fact.output, error=fact.error
                )
                if fact.kind == "inbox":
                    self.inbox_read += len(msgspec.convert(fact.output, type=list[object]))
            case ToolUsed(step=step):
                self.answered[step] = Answered(
                    kind="tool", name=fact.tool, sha256=fact.input_sha256, answer=fact.output, error=fact.error
                )
            case PlanProposed(step=step, input_sha256=sha256, needs_approval=needs_approval):
                asked = Answered(kind="plan", sha256=sha256, answer={"approved": True})
                (self._asked if needs_approval else self.answered)[step] = asked
            case InputRequested(step=step, input_sha256=sha256):
                self._asked[step] = Answered(kind="ask", sha256=sha256)
            case ReviewRequested(step=step, input_sha256=sha256):
                self._asked[step] = Answered(kind="review", sha256=sha256)
            case InputReceived(step=step, text=text):
                if step is None:
                    self.inbox.append(text)
                else:
                    self._answer(step, text)
            case ReviewDecided(step=step, approved=approved, feedback=feedback):
                self._answer(step, {"approved": approved, "feedback": feedback})
            case (
                TaskCreated()
                | TaskQueued()
                | TaskStarted()
                | PartialProduced()
                | PauseRequested()
                | TaskPaused()
                | TaskResumed()
                | RunFailed()
                | TaskCompleted()
                | TaskFailed()
                | TaskCancelled()
                | TaskTimedOut()
                | UnknownFact()
            ):
                return
            case _:
                assert_never(fact)

    def _answer(self, step: int, answer: Json) -> None:
        asked = self._asked.get(step)
        if asked is not None:
            self.answered[step] = Answered(kind=asked.kind, sha256=asked.sha256, answer=answer)
