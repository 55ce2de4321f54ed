"""A scenario as JSON: what it may say, and the reading of it, with every mistake named by its place.

Scenarios come from the network: nothing in one touches a file, and what one may expand to is bounded.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from app.agents.agent import AgentFailed, File
from eventstore.events import Json, PlannedStep, Usage

# A small body must not fill the log: what a scenario expands to is bounded in steps and in bytes of JSON.
MAX_STEPS = 15_000
MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 8
READ_FILE = "read_file"
# Tokens, or dollars, of one usage step: a sum of infinities is no JSON.
MAX_COUNT = 10**12

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(min_length=1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Times = Annotated[int, Meta(ge=0, le=MAX_STEPS)]


class Verb(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step of a scenario. Its first field is the verb, and the only one that is required."""


class SayText(Verb, frozen=True, kw_only=True):
    say: str
    takes: Seconds = 0.0


class UseTool(Verb, frozen=True, kw_only=True):
    tool: Name
    input: Json = msgspec.field(default_factory=dict[str, Json])
    output: Json = msgspec.field(default_factory=lambda: {"ok": True})
    takes: Seconds = 0.0
    read_only: bool = False


class ReadFile(Verb, frozen=True, kw_only=True):
    """A tool that says what is in a file that came with the task, by the file's name."""

    read: Text


class Wait(Verb, frozen=True, kw_only=True):
    sleep: Seconds


class AskUser(Verb, frozen=True, kw_only=True):
    ask: Text


class AskReview(Verb, frozen=True, kw_only=True):
    review: Text


class ShowPlan(Verb, frozen=True, kw_only=True):
    plan: tuple[Name | PlannedStep, ...]


class CountUsage(Verb, frozen=True, kw_only=True):
    usage: Usage


class Failure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    code: Name = "simulated"
    message: str = "the scenario says so"


class Fail(Verb, frozen=True, kw_only=True):
    fail: Failure


class Crash(Verb, frozen=True, kw_only=True):
    """The worker process dies, once."""

    crash: bool


class Complete(Verb, frozen=True, kw_only=True):
    """`{answer}` in it is the user's last answer."""

    complete: str | None


class Repeat(Verb, frozen=True, kw_only=True):
    repeat: Times
    steps: list[Json]


class Repeated(Struct, frozen=True, kw_only=True):
    """A Repeat whose steps were read."""

    times: int
    steps: "Scenario"


Playable = SayText | UseTool | ReadFile | Wait | AskUser | AskReview | ShowPlan | CountUsage | Fail | Crash | Complete
Scenario = tuple[Playable | Repeated, ...]
Extent = tuple[int, int]
SHAPES: tuple[type[Playable | Repeat], ...] = (
    *(SayText, UseTool, ReadFile, Wait, AskUser, AskReview, ShowPlan, CountUsage, Fail, Crash, Complete),
    Repeat,
)
VERBS = {shape.__struct_fields__[0]: shape for shape in SHAPES}


def read_scenario(given: Json, files: Sequence[File] = ()) -> Scenario:
    """The scenario in a task's input; the standard one, which reads its files, for a text that holds none.
    Raises AgentFailed."""
    found: Json = _in_text(given) if isinstance(given, str) else given
    if found is None:
        return _standard(given if isinstance(given, str) else "", files)
    written = object_of(found)
    if written is None:
        raise _bad("the scenario", f"expected an object with steps, or text, got {type(found).__name__}")
    if "steps" not in written:
        raise _bad("steps", "missing")
    scenario, _ = _read_list(written["steps"], "steps", depth=0)
    return scenario


def _in_text(text: str) -> Json:
    """The object with steps that a text holds, or None. A text that was meant as one, but is no JSON, is an error."""
    try:
        found: Json = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and '"steps"' in text:
            raise _bad("the scenario", f"not JSON: {error}") from error
        return None
    written = object_of(found)
    return found if written is not None and "steps" in written else None


def _read_list(written: Json, place: str, depth: int) -> tuple[Scenario, Extent]:
    """The steps, and what they expand to, reckoned without expanding them."""
    if not isinstance(written, list | tuple):
        raise _bad(place, f"expected a list, got {type(written).__name__}")
    if depth > MAX_DEPTH:
        raise _bad(place, f"repeats are nested more than {MAX_DEPTH} deep")
    steps: list[Playable | Repeated] = []
    count = size = 0
    for number, item in enumerate(msgspec.convert(written, type=list[Json])):
        step, (more, bigger) = _read_step(item, f"{place}[{number}]", depth)
        count, size = count + more, size + bigger
        if count > MAX_STEPS or size > MAX_BYTES:
            what = f"{MAX_STEPS} steps" if count > MAX_STEPS else f"{MAX_BYTES} bytes"
            raise _bad(f"{place}[{number}]", f"the scenario expands to more than {what}")
        steps.append(step)
    return tuple(steps), (count, size)


def _read_step(item: Json, place: str, depth: int) -> tuple[Playable | Repeated, Extent]:
    written = object_of(item)
    if written is None:
        raise _bad(place, f"expected an object, got {type(item).__name__}")
    step = _convert(written, VERBS[_verb_of(written, place)], place)
    match step:
        case Repeat(repeat=times):
            steps, (count, size) = _read_list(step.steps, f"{place}.steps", depth + 1)
            # An empty body counts too: a billion turns of nothing would hold the worker.
            return Repeated(times=times, steps=steps), (times * max(1, count), times * size)
        case Crash(crash=False):
            raise _bad(f"{place}.crash", "the only crash is true")
        case CountUsage(usage=usage):
            if max(usage.input_tokens, usage.output_tokens) > MAX_COUNT or not usage.cost <= MAX_COUNT:
                raise _bad(f"{place}.usage", f"a count is over {MAX_COUNT}")
        case _:
            pass
    try:
        return step, (1, len(msgspec.json.encode(written)))
    except (ValueError, TypeError, RecursionError) as error:
        raise _bad(place, f"not JSON: {error}") from error


def _verb_of(written: dict[str, Json], place: str) -> str:
    if not written:
        raise _bad(place, "an empty step")
    verbs = [name for name in written if name in VERBS]
    if not verbs:
        raise _bad(place, f"unknown step '{next(iter(written))[:64]}'")
    if len(verbs) > 1:
        raise _bad(place, f"one step, two verbs: '{verbs[0]}' and '{verbs[1]}'")
    return verbs[0]


def _convert(written: dict[str, Json], shape: type[Playable | Repeat], place: str) -> Playable | Repeat:
    try:
        return msgspec.convert(written, type=shape)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        raise _bad(place + where.rstrip("`"), what[:1].lower() + what[1:]) from error


def object_of(found: Json) -> dict[str, Json] | None:
    """The JSON object that this is; None: it is none."""
    try:
        return msgspec.convert(found, type=dict[str, Json])
    except msgspec.ValidationError:
        return None


def _bad(place: str, what: str) -> AgentFailed:
    return AgentFailed("bad_scenario", f"{place}: {what}")


def _standard(text: str, files: Sequence[File]) -> Scenario:
    """About two seconds: a plan, a look at each file, two tools, a few streamed sentences, the end."""
    asked = " ".join(text.split())[:200]
    opening = "I looked at what you asked and found two places that answer it. "
    closing = "The first says how it works, the second says why. Both agree, so this is short."
    return (
        ShowPlan(
            plan=(
                *(PlannedStep(tool=READ_FILE, why=f"{file.name}, {file.size} bytes") for file in files),
                PlannedStep(tool="search", why="find what bears on it"),
                PlannedStep(tool="read", why="check"),
            )
        ),
        *(ReadFile(read=file.name) for file in files),
        UseTool(tool="search", input={"query": asked}, output={"hits": 2}, takes=0.4, read_only=True),
        SayText(say=opening, takes=0.5),
        UseTool(tool="read", input={"hit": 1}, output={"lines": 12}, takes=0.4, read_only=True),
        SayText(say=closing, takes=0.6),
        Complete(complete=opening + closing),
    )


def unrolled(steps: Scenario) -> Iterator[Playable]:
    """The steps in the order in which they are played."""
    for step in steps:
        if isinstance(step, Repeated):
            for _ in range(step.times):
                yield from unrolled(step.steps)
        else:
            yield step
