"""The simulator: every verb of a scenario, every mistake in one, and the same steps on every replay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.agents.agent import Brief, Plan, ReportUsage, Review, Say, Sleep, Work, say
from app.agents.scenario import MAX_BYTES, MAX_DEPTH, MAX_STEPS, Complete, SayText, ShowPlan, UseTool, read_scenario
from app.agents.simulator import Simulator
from eventstore.events import ApprovalMode, Json, PlannedStep, Problem, Usage
from tests.worker.play import Played, Replies, brief, play, replay

REFUSED: Json = {"approved": False, "feedback": "too dear"}


def scenario(*steps: Json, replies: Replies | None = None) -> Played:
    return play(Simulator(), brief({"steps": list(steps)}), replies)


def refused(given_input: Json) -> str:
    played = play(Simulator(), brief(given_input))
    assert played.failed is not None
    assert played.failed.code == "bad_scenario"
    assert played.steps == ()
    return played.failed.message


def under(mode: ApprovalMode, *steps: Json, replies: Replies | None = None) -> Played:
    return play(Simulator(), replace(brief({"steps": list(steps)}), approval_mode=mode), replies)


def test_the_standard_scenario_plans_uses_two_tools_streams_and_completes() -> None:
    played = play(Simulator(), brief("What are tides?"))
    assert [type(step).__name__ for step in played.steps] == ["Plan", "CallTool", "Say", "CallTool", "Say"]
    assert played.tools == ["search", "read"]
    assert played.result == played.said
    assert played.result
    for step in played.of("text"):
        assert isinstance(step, Say)
        assert len(step.pieces) > 1


@pytest.mark.parametrize("text", ["Why?", "", None, "{}", "[1]", "3", '{"step": []}', "{ not json", "[" * 99_999])
def test_any_other_text_gets_the_standard_scenario(text: str | None) -> None:
    kinds = [type(step) for step in read_scenario(text)]
    assert kinds == [ShowPlan, UseTool, SayText, UseTool, SayText, Complete]


def test_a_scenario_may_come_as_an_object_or_in_a_text() -> None:
    steps = {"steps": [{"say": "hello"}]}
    assert play(Simulator(), brief(steps)).result == "hello"
    assert play(Simulator(), brief(msgspec.json.encode(steps).decode())).result == "hello"


def test_it_completes_with_the_text_it_said() -> None:
    assert scenario({"say": "one "}, {"sleep": 0}, {"say": "two"}).result == "one two"
    assert scenario().result == ""


def test_a_long_text_streams_in_a_few_pieces_over_the_time_it_takes() -> None:
    text = "The tide comes in twice a day. " * 200
    played = scenario({"say": text, "takes": 2})
    say = played.steps[0]
    assert isinstance(say, Say)
    assert "".join(say.pieces) == text == played.result
    assert 4 <= len(say.pieces) <= 40
    assert say.every_s * len(say.pieces) == pytest.approx(2)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_pieces_are_the_text_whatever_it_is(text: str) -> None:
    assert scenario({"say": text}).result == text


def test_a_tool_answers_its_output_after_a_while() -> None:
    played = scenario({"tool": "search", "input": {"q": 1}, "output": [1, None], "takes": 0.01}, {"tool": "read"})
    assert played.tools == ["search", "read"]
    assert played.answers("tool") == [[1, None], {"ok": True}]


def test_it_sleeps_as_long_as_it_says() -> None:
    assert scenario({"sleep": 1.5}).steps == (Sleep(seconds=1.5),)


def test_the_last_answer_is_in_the_result() -> None:
    replies: Replies = {"ask": ["Ann", "Bo"]}
    played = scenario({"ask": "who?"}, {"ask": "really?"}, {"complete": "For {answer}, {answer}"}, replies=replies)
    assert played.result == "For Bo, Bo"


def test_without_an_answer_the_place_for_it_stays() -> None:
    assert scenario({"complete": "For {answer}"}).result == "For {answer}"


def test_an_answer_cannot_blow_up_the_result() -> None:
    steps: list[Json] = [{"ask": "who?"}, {"complete": "{answer}" * 1000}]
    played = scenario(*steps, replies={"ask": ["x" * (MAX_BYTES // 500)]})
    assert played.failed is not None
    assert played.failed.code == "bad_scenario"


def test_a_task_may_complete_without_a_result_and_nothing_follows_the_end() -> None:
    played = scenario({"say": "hm"}, {"complete": None}, {"say": "never"})
    assert played.result is None
    assert played.said == "hm"


def test_an_approved_review_goes_on() -> None:
    played = scenario({"review": "the draft"}, {"say": "sent"})
    assert played.steps[0] == Review(subject="the draft")
    assert played.result == "sent"


@pytest.mark.parametrize(
    ("step", "code"), [({"review": "the draft"}, "review_refused"), ({"plan": []}, "plan_refused")]
)
def test_a_refusal_fails_the_task_with_what_the_person_said(step: dict[str, Json], code: str) -> None:
    replies: Replies = {"review": [REFUSED], "plan": [REFUSED]}
    assert scenario(step, replies=replies).failed == Problem(code=code, message="too dear")
    silent: Replies = {"review": [{"approved": False}], "plan": [{"approved": False}]}
    played = scenario(step, replies=silent)
    assert played.failed is not None
    assert "approved" in played.failed.message


def test_a_plan_names_tools_and_why() -> None:
    played = scenario({"plan": ["search", {"tool": "read", "why": "to be sure"}]})
    assert played.steps == (Plan(steps=(PlannedStep(tool="search"), PlannedStep(tool="read", why="to be sure"))),)


def test_usage_is_reported() -> None:
    usage = {"provider": "p", "model": "m", "input_tokens": 3, "output_tokens": 4, "cost": 0.5}
    expected = Usage(provider="p", model="m", input_tokens=3, output_tokens=4, cost=0.5)
    assert scenario({"usage": usage}).steps == (ReportUsage(usage=expected),)


def test_it_fails_as_told() -> None:
    assert scenario({"fail": {"code": "odd", "message": "just so"}}).failed == Problem(code="odd", message="just so")
    failed = scenario({"fail": {}}).failed
    assert failed is not None
    assert failed.code == "simulated"


def test_steps_repeat_within_repeats() -> None:
    inner: Json = {"repeat": 2, "steps": [{"say": "b"}]}
    assert scenario({"repeat": 3, "steps": [{"say": "a"}, inner]}, {"say": "c"}).result == "abbabbabbc"
    assert scenario({"repeat": 0, "steps": [{"say": "a"}]}).result == ""


def test_a_crash_kills_the_process_once() -> None:
    code = (
        "from app.agents.simulator import Simulator\n"
        "from tests.worker.play import brief, play\n"
        "play(Simulator(), brief({'steps': [{'crash': True}]}))\n"
    )
    died = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert died.returncode == -signal.SIGKILL
    lived = play(Simulator(), brief({"steps": [{"crash": True}, {"say": "alive"}]}), started_before=True)
    assert lived.result == "alive"
    assert lived.tools == ["crash"]


def test_every_tool_that_acts_leaves_one_line(tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    agent = Simulator(effects=effects)
    told = brief({"steps": [{"say": "x"}, {"repeat": 2, "steps": [{"tool": "a"}]}]})
    first = play(agent, told)
    assert effects.read_text() == "task_play task_play:1\ntask_play task_play:2\n"
    replay(agent, told, first, 2)
    assert effects.read_text().splitlines()[2:] == ["task_play task_play:2"]


def test_a_scenario_touches_no_file(tmp_path: Path) -> None:
    before = os.listdir(tmp_path)
    assert "unknown field `effects`" in refused({"steps": [{"tool": "a", "effects": str(tmp_path / "x")}]})
    assert os.listdir(tmp_path) == before


TOOLS: list[Json] = [{"say": "first"}, {"repeat": 2, "steps": [{"tool": "a"}]}, {"tool": "b"}]
ITS_TOOLS = Plan(steps=(PlannedStep(tool="a"), PlannedStep(tool="a"), PlannedStep(tool="b")))


def test_its_tool_steps_are_the_plan_where_approval_is_wanted() -> None:
    played = under("confirm", *TOOLS)
    assert played.steps[0] == ITS_TOOLS
    assert played.tools == ["a", "a", "b"]
    assert under("auto", *TOOLS).of("plan") == []


def test_a_refused_plan_uses_no_tool() -> None:
    played = under("confirm", *TOOLS, replies={"plan": [REFUSED]})
    assert played.failed == Problem(code="plan_refused", message="too dear")
    assert played.tools == []


def test_a_dry_run_ends_with_the_plan() -> None:
    played = under("dry_run", *TOOLS)
    assert (played.steps, played.result, played.failed) == ((ITS_TOOLS,), None, None)
    own = under("dry_run", {"say": "hm"}, {"plan": ["x"]}, {"tool": "a"})
    assert own.steps[1:] == (Plan(steps=(PlannedStep(tool="x"),)),)
    assert (own.result, own.failed) == (None, None)


def test_a_scenario_that_acts_before_its_own_plan_proposes_its_tools_first() -> None:
    played = under("dry_run", {"tool": "a"}, {"plan": ["x"]})
    assert played.steps == (Plan(steps=(PlannedStep(tool="a"),)),)
    assert len(under("confirm", {"plan": ["x"]}, {"tool": "a"}).of("plan")) == 1


def test_a_very_long_plan_is_cut_and_says_so() -> None:
    plan = under("dry_run", {"repeat": 2000, "steps": [{"tool": "a"}]}).steps[0]
    assert isinstance(plan, Plan)
    assert len(plan.steps) == 500
    assert plan.steps[-1].why == "and 1500 more steps with tools"


def nested(depth: int) -> Json:
    step: dict[str, Json] = {"say": "x"}
    for _ in range(depth):
        step = {"repeat": 1, "steps": [step]}
    return {"steps": [step]}


def steps(*written: Json) -> Json:
    return {"steps": list(written)}


SAY: Json = {"say": "x"}
NOTHING: Json = {"repeat": 9000, "steps": list[Json]()}
BIG: Json = {"tool": "x", "input": "x" * 100_000}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (steps(SAY, SAY, SAY, {"repeat": 1, "steps": [{"foo": 1}]}), "steps[3].steps[0]: unknown step 'foo'"),
        (steps({"say": "x", "tool": "y"}), "steps[0]: one step, two verbs: 'say' and 'tool'"),
        (steps({}), "steps[0]: an empty step"),
        (steps(SAY, 3), "steps[1]: expected an object, got int"),
        (steps({"say": 3}), "steps[0].say: expected `str`, got `int`"),
        (steps({"say": "x", "take": 3}), "steps[0]: object contains unknown field `take`"),
        (steps({"plan": ["x", {"why": "y"}]}), "steps[0].plan[1]: object missing required field `tool`"),
        (steps({"plan": "x"}), "steps[0].plan: expected `array`, got `str`"),
        (steps({"tool": ""}), "steps[0].tool: expected `str` of length >= 1"),
        (steps({"ask": ""}), "steps[0].ask: expected `str` of length >= 1"),
        (steps({"fail": {"kode": "x"}}), "steps[0].fail: object contains unknown field `kode`"),
        (steps({"usage": {"input_tokens": -1}}), "steps[0].usage.input_tokens: expected `int` >= 0"),
        (steps({"usage": {"cost": 1e300}}), "steps[0].usage: a count is over 1000000000000"),
        (steps({"usage": {"input_tokens": 10**18}}), "steps[0].usage: a count is over 1000000000000"),
        (steps({"crash": False}), "steps[0].crash: the only crash is true"),
        (steps({"sleep": -1}), "steps[0].sleep: expected `float` >= 0.0"),
        (steps({"sleep": float("nan")}), "steps[0].sleep: expected `float` >= 0.0"),
        (steps({"sleep": float("inf")}), "steps[0].sleep: expected `float` <= 86400.0"),
        (steps({"sleep": True}), "steps[0].sleep: expected `float`, got `bool`"),
        (steps({"tool": "x", "takes": 1e9}), "steps[0].takes: expected `float` <= 86400.0"),
        (steps({"repeat": -1, "steps": []}), "steps[0].repeat: expected `int` >= 0"),
        (steps({"repeat": 2}), "steps[0]: object missing required field `steps`"),
        (steps({"repeat": 2, "steps": {}}), "steps[0].steps: expected `array`, got `object`"),
        (steps({"repeat": 10**9, "steps": []}), f"steps[0].repeat: expected `int` <= {MAX_STEPS}"),
        (steps(SAY, {"repeat": 15_000, "steps": [SAY]}), "steps[1]: the scenario expands to more than 15000 steps"),
        (
            steps({"repeat": 9000, "steps": [NOTHING]}),
            "steps[0]: the scenario expands to more than 15000 steps",
        ),
        (steps({"repeat": 200, "steps": [BIG]}), f"steps[0]: the scenario expands to more than {MAX_BYTES} bytes"),
        ({"steps": {}}, "steps: expected a list, got dict"),
        ({"text": "hello"}, "steps: missing"),
        (7, "the scenario: expected an object with steps, or text, got int"),
        ('{"steps": [{"say": 1}]}', "steps[0].say: expected `str`, got `int`"),
    ],
)
def test_a_bad_scenario_is_refused_with_the_place_of_the_mistake(written: Json, message: str) -> None:
    assert refused(written) == message


def test_repeats_nest_to_a_depth() -> None:
    assert play(Simulator(), brief(nested(MAX_DEPTH))).result == "x"
    assert f"repeats are nested more than {MAX_DEPTH} deep" in refused(nested(MAX_DEPTH + 1))
    assert "repeats are nested" in refused(nested(200))


def test_a_broken_scenario_in_a_text_is_not_taken_for_a_question() -> None:
    assert refused('{"steps": [{"say": "x"}').startswith("the scenario: not JSON: ")
    assert refused('{"steps": [{"tool": "x", "input": ' + "[" * 100_000).startswith("the scenario: not JSON: ")


def test_the_largest_scenario_plays() -> None:
    played = scenario({"repeat": 150, "steps": [{"repeat": 100, "steps": [{"say": "x"}]}]})
    assert len(played.steps) == MAX_STEPS


SECONDS = st.sampled_from([0, 0.0, 0.001])
PLANNED = st.text(min_size=1, max_size=9) | st.fixed_dictionaries({"tool": st.just("a"), "why": st.text(max_size=5)})
ANY_JSON = st.none() | st.integers() | st.text(max_size=9) | st.lists(st.booleans(), max_size=2)
LEAF = st.one_of(
    st.fixed_dictionaries({"say": st.text(max_size=90)}),
    st.fixed_dictionaries({"tool": st.sampled_from("ab")}, optional={"input": ANY_JSON, "output": ANY_JSON}),
    st.fixed_dictionaries({"sleep": SECONDS}),
    st.fixed_dictionaries({"ask": st.just("who?")}),
    st.fixed_dictionaries({"review": st.just("this")}),
    st.fixed_dictionaries({"plan": st.lists(PLANNED, max_size=3)}),
    st.fixed_dictionaries({"usage": st.fixed_dictionaries({"cost": st.sampled_from([0.0, 0.5])})}),
    st.fixed_dictionaries({"complete": st.just("For {answer}")}),
    st.fixed_dictionaries({"fail": st.just({"code": "odd"})}),
)
STEPS = st.recursive(
    st.lists(LEAF, max_size=6),
    lambda inner: st.lists(LEAF | st.fixed_dictionaries({"repeat": st.integers(0, 3), "steps": inner}), max_size=4),
    max_leaves=6,
)
VERDICTS = st.lists(st.fixed_dictionaries({"approved": st.sampled_from([True, True, True, False])}), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    written=STEPS,
    mode=st.sampled_from(["auto", "dry_run", "confirm"]),
    verdicts=VERDICTS,
    names=st.lists(st.text(max_size=5), max_size=3),
    cut=st.floats(0, 1),
)
def test_a_replay_from_any_step_asks_the_same_steps(
    written: list[Json], mode: ApprovalMode, verdicts: list[Json], names: list[str], cut: float
) -> None:
    told = replace(brief({"steps": written}), approval_mode=mode)
    replies: Replies = {"ask": names, "plan": verdicts, "review": verdicts[::-1]}
    first = play(Simulator(), told, replies)
    for known in {0, round(cut * len(first.steps)), len(first.steps)}:
        replay(Simulator(), told, first, known, replies)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["say", "tool", "repeat"]), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(ANYTHING, min_size=1, max_size=3))
def test_nonsense_is_refused_and_never_breaks_a_run(written: list[Json]) -> None:
    played = play(Simulator(), brief({"steps": written}))
    assert played.failed is None or played.failed.code == "bad_scenario"


class Fickle:
    """An agent that is not the same in every run."""

    name = "fickle"
    description = "Counts its runs aloud."
    limit = 1

    def __init__(self) -> None:
        self.runs = 0

    def run(self, brief: Brief) -> Work:
        """Say which run it is."""
        self.runs += 1
        yield from say(f"{brief.title} {self.runs}")
        return None


def test_an_agent_that_changes_is_caught_by_a_replay() -> None:
    agent = Fickle()
    first = play(agent, brief())
    for known in (0, 1):
        with pytest.raises(AssertionError):
            replay(agent, brief(), first, known)
