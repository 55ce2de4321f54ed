"""What a step asks and what it is answered, apart from any log: digests, comparisons, bounds, text in pieces."""

import hashlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import assert_never

import msgspec
from msgspec import Struct

from app.agents.agent import (
    AgentFailed,
    Ask,
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
    kind_of,
)
from eventstore.codec import MAX_DEPTH, nested_over
from eventstore.events import Json, Problem
from projections.steps import Answered

FLUSH_S = 0.05
FLUSH_BYTES = 2048
MAX_MESSAGE = 2000
MAX_ASKED = 128 * 1024
"""Bytes of a question, a review's subject or a plan."""
MAX_OUTPUT = 16 * 1024 * 1024
"""Bytes of a tool's output, or of a result."""


class Answer(Struct, frozen=True):
    """What the agent is sent, or what is thrown into it."""

    value: Json = None
    error: Problem | None = None


_canonical = msgspec.json.Encoder(order="deterministic")


def digest_of(step: Step) -> str:
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


def check_same(number: int, step: Step, digest: str, known: Answered) -> None:
    """Raises AgentFailed where the agent does not ask what is on record for this step."""
    same = kind_of(step) == known.kind and (not isinstance(step, CallTool) or step.name == known.name)
    if same and known.sha256 in ("", digest):
        return
    asked, recorded = f"{kind_of(step)} {getattr(step, 'name', '')}", f"{known.kind} {known.name}"
    detail = f"step {number} was {recorded.strip()!r} and is now {asked.strip()!r}"
    if same:
        detail = f"step {number}, {asked.strip()!r}, is asked otherwise than before"
    raise AgentFailed("agent_changed", detail)


def check_asked(number: int, step: Ask | Review | Plan) -> None:
    """Raises AgentFailed where the question would be too large to be shown with its task."""
    if len(msgspec.json.encode(step)) > MAX_ASKED:
        raise AgentFailed("too_large", f"step {number} asks more than {MAX_ASKED} bytes")


def approved(answer: Json) -> bool:
    """Whether this verdict says yes."""
    return msgspec.convert(answer, type=Verdict).approved


def plain(output: object) -> Json:
    """The output as the log will give it back, so that the first run sees what every later one will.

    Raises StepFailed where it is too large; what is no JSON at all is a TypeError, and breaks the run.
    """
    encoded = msgspec.json.encode(output)
    if len(encoded) > MAX_OUTPUT:
        raise StepFailed("too_large", f"its output is over {MAX_OUTPUT} bytes")
    answer = msgspec.json.decode(encoded)
    if nested_over(answer, MAX_DEPTH):
        raise StepFailed("too_deep", f"its output is nested over {MAX_DEPTH} levels")
    return answer


def result_of(value: object) -> str | None:
    """The task's result. Raises AgentFailed where it is too large."""
    if value is None:
        return None
    result = encodable(str(value))
    if len(result.encode()) > MAX_OUTPUT:
        raise AgentFailed("too_large", f"the result is over {MAX_OUTPUT} bytes")
    return result


def encodable(text: str) -> str:
    """The text without what no JSON can hold (half a surrogate pair): the log would refuse all of it."""
    return text.encode(errors="replace").decode()


async def gathered(step: Say, pause: Callable[[float], Awaitable[None]]) -> AsyncGenerator[str]:
    """A step's text at its pace, in flushes: every 50 ms or 2 KiB, whichever comes first, and at the end."""
    waiting = ""
    flushed_at = time.monotonic()
    for piece in step.pieces or (step.text,):
        *full, waiting = _slices(waiting + piece)
        for text in full:
            yield text
            flushed_at = time.monotonic()
        if step.every_s > 0:
            if waiting and time.monotonic() + step.every_s - flushed_at >= FLUSH_S:
                yield waiting
                waiting, flushed_at = "", time.monotonic()
            await pause(step.every_s)
    if waiting:
        yield waiting


def _slices(text: str) -> list[str]:
    """The text in slices of at most FLUSH_BYTES; the last one may wait for more (and may be empty)."""
    slices: list[str] = []
    at = 0
    while at < len(text):
        slices.append(text[at : at + FLUSH_BYTES].encode()[:FLUSH_BYTES].decode(errors="ignore"))
        at += len(slices[-1])
    return slices or [""]
