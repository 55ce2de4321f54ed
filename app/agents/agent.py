"""The agent protocol: an agent is a generator of steps and is sent their answers.

After a crash, a pause or a long wait an agent is run again from its beginning and fed the recorded answers; recorded
steps do not run again. So an agent is deterministic but for its steps: the clock, chance and the world are steps too.

    def run(self, brief: Brief) -> Work:
        hits = yield from call_tool("search", {"q": "tides"}, search)
        name = yield from ask("Who is it for?")
        yield from say(f"For {name}: {len(hits)} hits.")
        return "done"
"""

from collections.abc import Awaitable, Callable, Generator
from datetime import datetime
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from eventstore.events import ApprovalMode, Json, PlannedStep, Problem, StepKind, TaskId, Usage


class AgentFailed(Exception):
    """The agent gives up: the task fails with this code, and is not tried again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class StepFailed(Exception):
    """A tool's own refusal: recorded as the step's error and thrown into the agent, which may go on."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.problem = Problem(code=code, message=message)


class Exchange(Struct, frozen=True, kw_only=True):
    """One earlier task of a conversation. `result` is None where it did not complete with one."""

    input: Json
    result: str | None


Reading = Callable[[], Awaitable[bytes]]


class File(Struct, frozen=True, kw_only=True):
    """A file that came with the task: `size` in bytes, `sha256` in hex. `read` is for tools: from within a step that
    acts. Raises StepFailed where it is not to be had."""

    name: str
    media_type: str
    size: int
    sha256: str
    read: Reading


class Brief(Struct, frozen=True, kw_only=True):
    """What an agent is told: its task. All of it is the same in every run. `conversation` is what was said before,
    oldest first, where the client goes on with one."""

    task_id: TaskId
    input: Json
    title: str | None = None
    session_id: str | None = None
    mode: str | None = None
    approval_mode: ApprovalMode = "auto"
    metadata: dict[str, Json] = {}
    conversation: tuple[Exchange, ...] = ()
    files: tuple[File, ...] = ()


class Act(Struct, frozen=True, kw_only=True):
    """What a step that acts is told. `idempotency_key` is the same in every run; `started_before` says that an earlier
    run began this step, and nobody knows how far it came."""

    idempotency_key: str
    started_before: bool


Acting = Callable[[Act], Json | Awaitable[Json]]
"""Does the step. A plain function runs in a thread. Raises StepFailed to refuse; anything else breaks the run."""


class CallTool(Struct, frozen=True, kw_only=True):
    """Use a tool (or, as an `effect`, act without being one). `input` is recorded, and compared on a replay. Only a
    tool that changes nothing, `read_only`, may be used where a question was asked and nothing ordered."""

    name: str
    input: Json
    act: Acting
    kind: Literal["tool", "effect"] = "tool"
    after_crash: Literal["again", "fail"] = "again"
    read_only: bool = False


class Say(Struct, frozen=True, kw_only=True):
    """Text for the reader, streamed as it is; `pieces` at the pace at which they are yielded."""

    text: str
    pieces: tuple[str, ...] = ()
    every_s: float = 0.0


class Ask(Struct, frozen=True, kw_only=True):
    """Ask the user; the answer is their text. No worker is held meanwhile."""

    question: str


class Review(Struct, frozen=True, kw_only=True):
    """Ask a person's approval of `subject`; the answer is a Verdict."""

    subject: str


class Plan(Struct, frozen=True, kw_only=True):
    """Say what comes; under approval mode `confirm` it waits for approval. The answer is a Verdict."""

    steps: tuple[PlannedStep, ...]


class ReadInbox(Struct, frozen=True, kw_only=True):
    """What the user said without being asked since this was last read: a list of texts."""


class ReadClock(Struct, frozen=True, kw_only=True):
    """The time, the same in every run."""


class DrawRandom(Struct, frozen=True, kw_only=True):
    """A random number in [0, 1), the same in every run."""


class Sleep(Struct, frozen=True, kw_only=True):
    """Wait."""

    seconds: float


class ReportUsage(Struct, frozen=True, kw_only=True):
    """What work cost that no other step stands for."""

    usage: Usage


Step = CallTool | Say | Ask | Review | Plan | ReadInbox | ReadClock | DrawRandom | Sleep | ReportUsage


class Verdict(Struct, frozen=True, kw_only=True):
    """A person's decision on a review or a plan."""

    approved: bool
    feedback: str | None = None


Work = Generator[Step, Json, str | None]
"""Steps out, answers in; returns the task's result."""


class Agent(Protocol):
    """What the worker runs. `name` is `[a-z0-9_-]{1,64}`; `limit` is how many of its tasks may run at once."""

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    @property
    def limit(self) -> int: ...

    def run(self, brief: Brief) -> Work:
        """Begin. May raise AgentFailed for an input that it can't take."""
        ...


KIND: dict[type[Step], StepKind] = {
    Say: "text",
    Ask: "ask",
    Review: "review",
    Plan: "plan",
    ReadInbox: "inbox",
    ReadClock: "clock",
    DrawRandom: "random",
    Sleep: "sleep",
    ReportUsage: "usage",
}


def kind_of(step: Step) -> StepKind:
    """The step's kind, as recorded."""
    return step.kind if isinstance(step, CallTool) else KIND[type(step)]


def call_tool(name: str, tool_input: Json, act: Acting, *, read_only: bool = False) -> Generator[Step, Json, Json]:
    """Use a tool; what it returns."""
    return (yield CallTool(name=name, input=tool_input, act=act, read_only=read_only))


def say(text: str) -> Generator[Step, Json, None]:
    """Text for the reader."""
    yield Say(text=text)


def ask(question: str) -> Generator[Step, Json, str]:
    """Ask the user; their text."""
    return str((yield Ask(question=question)))


def review(subject: str) -> Generator[Step, Json, Verdict]:
    """Ask for approval."""
    return msgspec.convert((yield Review(subject=subject)), type=Verdict)


def propose(steps: tuple[PlannedStep, ...]) -> Generator[Step, Json, Verdict]:
    """Say what comes."""
    return msgspec.convert((yield Plan(steps=steps)), type=Verdict)


def read_inbox() -> Generator[Step, Json, list[str]]:
    """What the user said unasked."""
    return msgspec.convert((yield ReadInbox()), type=list[str])


def read_clock() -> Generator[Step, Json, datetime]:
    """The time."""
    return msgspec.convert((yield ReadClock()), type=datetime, strict=False)


def draw_random() -> Generator[Step, Json, float]:
    """A random number in [0, 1)."""
    return msgspec.convert((yield DrawRandom()), type=float)


def sleep(seconds: float) -> Generator[Step, Json, None]:
    """Wait."""
    yield Sleep(seconds=seconds)


def report_usage(usage: Usage) -> Generator[Step, Json, None]:
    """What work cost."""
    yield ReportUsage(usage=usage)
