"""The laws of a task's life, held against every command in any order.

*Harmless* means: a command that gave a fact gives none when it comes again at once, as it does from a client or worker
that did not hear the answer. Two things it can't mean. Without a key, two messages with the same text are two messages;
so here whatever a user says has a key. And a wish without a key that comes again later, when it is no longer true
(pause, resume, pause), is a new wish. A command with a key is harmless as long as the key is remembered; a worker's
are fenced by run and step, so that no run starts twice and no step is finished twice, however late they come.
"""

from datetime import timedelta
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.commands import (
    CancelTask,
    Command,
    CompleteTask,
    CreateTask,
    DecideReview,
    FailRun,
    FailTask,
    FinishStep,
    PauseTask,
    ProducePartial,
    ProposePlan,
    QueueTask,
    ReceiveInput,
    RequestInput,
    RequestPause,
    RequestReview,
    ResumeTask,
    StartRun,
    StartStep,
    TimeOutTask,
)
from app.decide import Rejected, decide
from eventstore.events import (
    ApprovalMode,
    Ending,
    InputReceived,
    PlanProposed,
    ReviewDecided,
    StepFinished,
    StepKind,
    TaskFact,
    TaskStarted,
    ToolUsed,
    UnknownFact,
)
from eventstore.log import Recorded
from projections.task import INITIAL, evolve
from tests.given import BEGIN, DEADLINE, PLAN, With, record_after
from tests.lifecycle.commands import BROKEN

KEYS = st.none() | st.sampled_from(["k1", "k2", "k3", "k4"])
TEXTS = st.sampled_from(["", "yes", "Hello"])
KINDS: st.SearchStrategy[StepKind] = st.sampled_from(["tool", "effect", "text"])
MODES: st.SearchStrategy[ApprovalMode] = st.sampled_from(["auto", "confirm"])
RIGHT_MOSTLY = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])
"""How far a command's run or step is off."""


class OneTask(RuleBasedStateMachine):
    """One task, and everyone who has something to say about it."""

    def __init__(self) -> None:
        super().__init__()
        self.task = INITIAL
        self.records: list[Recorded] = []
        self.granted: list[Command] = []

    def say(self, command: Command) -> None:
        decision = decide(command, self.task)
        if decision is None or isinstance(decision, Rejected):
            return
        assert not self.task.ended, f"{decision} follows the end"
        # A machine's clock may go back; `at` must not.
        clock = BEGIN + timedelta(seconds=len(self.records) % 3)
        before = self.records[-1] if self.records else None
        self.records.append(record_after(before, With(fact=decision, key=command.key), at=clock))
        self.granted.append(command)
        self.task = evolve(self.task, self.records[-1])
        again = decide(command, self.task)
        assert again is None or isinstance(again, Rejected), f"{command}, repeated, gives {again} after {decision}"

    @property
    def facts(self) -> list[TaskFact | UnknownFact]:
        return [recorded.record.fact for recorded in self.records]

    @initialize(key=KEYS, mode=MODES, most=st.integers(1, 6), runs=st.integers(0, 3))
    def begin(self, key: str | None, mode: ApprovalMode, most: int, runs: int) -> None:
        self.create(key=key, fingerprint="f1", mode=mode, most=most)
        for _ in range(runs):
            self.start_run(off=0, worker="w1")

    @rule(times=st.integers(1, 4))
    def go_on(self, times: int) -> None:
        """Whatever brings the task further; without it few lives would be long."""
        for _ in range(times):
            match self.task.status:
                case "pending" | "queued":
                    self.start_run(off=0, worker="w1")
                case "running":
                    self.finish_step(run=0, step=0, kind="tool", message=None)
                case "waiting_for_input":
                    self.tell(text="yes")
                case "awaiting_review":
                    self.review(approved=True, key=None)
                case "paused":
                    self.resume(key=None)
                case _:
                    pass  # absent or ended: nothing brings it further

    # A client

    @rule(key=KEYS, fingerprint=st.sampled_from(["f1", "f1", "f2"]), mode=MODES, most=st.integers(1, 4))
    def create(self, key: str | None, fingerprint: str, mode: ApprovalMode, most: int) -> None:
        command = CreateTask(
            agent="simulator",
            fingerprint=fingerprint,
            key=key,
            approval_mode=mode,
            max_failures=most,
            deadline=DEADLINE,
        )
        self.say(command)

    @rule(text=TEXTS)
    def tell(self, text: str) -> None:
        self.say(ReceiveInput(text=text, key=f"told {len(self.records)}"))

    @rule(approved=st.booleans(), key=KEYS)
    def review(self, approved: bool, key: str | None) -> None:
        self.say(DecideReview(approved=approved, key=key))

    @rule(key=KEYS)
    def ask_to_pause(self, key: str | None) -> None:
        self.say(RequestPause(key=key))

    @rule(key=KEYS)
    def resume(self, key: str | None) -> None:
        self.say(ResumeTask(key=key))

    # The rarer, the longer the lives that are tried.
    @precondition(lambda self: len(self.records) % 4 == 3)
    @rule(key=KEYS)
    def cancel(self, key: str | None) -> None:
        self.say(CancelTask(by="ann", key=key))

    # The dispatcher and its timers

    @rule()
    def queue(self) -> None:
        self.say(QueueTask(limit=1))

    @precondition(lambda self: len(self.records) % 4 == 3)
    @rule(off=RIGHT_MOSTLY)
    def time_out(self, off: int) -> None:
        self.say(TimeOutTask(deadline=DEADLINE + timedelta(seconds=off)))

    # A worker

    @rule(off=RIGHT_MOSTLY, worker=st.sampled_from(["w1", "w2"]))
    def start_run(self, off: int, worker: str) -> None:
        self.say(StartRun(run=self.task.run + 1 + off, worker=worker))

    @rule(run=RIGHT_MOSTLY, step=RIGHT_MOSTLY, kind=KINDS)
    def start_step(self, run: int, step: int, kind: StepKind) -> None:
        self.say(StartStep(run=self.task.run + run, step=self.task.steps + step, kind=kind, name="search"))

    @rule(run=RIGHT_MOSTLY, step=RIGHT_MOSTLY, kind=KINDS, message=st.none() | TEXTS)
    def finish_step(self, run: int, step: int, kind: StepKind, message: str | None) -> None:
        self.say(
            FinishStep(run=self.task.run + run, step=self.task.steps + step, kind=kind, name="search", message=message)
        )

    @rule(run=RIGHT_MOSTLY, step=RIGHT_MOSTLY, offset=RIGHT_MOSTLY, text=st.sampled_from(["a", "Hello"]))
    def produce(self, run: int, step: int, offset: int, text: str) -> None:
        self.say(
            ProducePartial(
                run=self.task.run + run,
                step=self.task.steps + step,
                offset=self.task.text_length + offset,
                text=text,
            )
        )

    @rule(run=RIGHT_MOSTLY, step=RIGHT_MOSTLY)
    def propose_plan(self, run: int, step: int) -> None:
        self.say(ProposePlan(run=self.task.run + run, step=self.task.steps + step, plan=PLAN))

    @rule(run=RIGHT_MOSTLY, step=RIGHT_MOSTLY)
    def ask(self, run: int, step: int) -> None:
        self.say(RequestInput(run=self.task.run + run, step=self.task.steps + step, question="Which one?"))

    @rule(run=RIGHT_MOSTLY, step=RIGHT_MOSTLY)
    def ask_for_review(self, run: int, step: int) -> None:
        self.say(RequestReview(run=self.task.run + run, step=self.task.steps + step, subject="Send it?"))

    @rule(run=RIGHT_MOSTLY)
    def pause(self, run: int) -> None:
        self.say(PauseTask(run=self.task.run + run))

    @rule(run=RIGHT_MOSTLY)
    def fail_run(self, run: int) -> None:
        self.say(FailRun(run=self.task.run + run, error=BROKEN))

    @precondition(lambda self: len(self.records) % 4 == 3)
    @rule(run=RIGHT_MOSTLY, well=st.booleans())
    def end(self, run: int, well: bool) -> None:
        run += self.task.run
        self.say(CompleteTask(run=run, result="done") if well else FailTask(run=run, code="broken"))

    # Anyone

    @precondition(lambda self: bool(self.granted))
    @rule(which=st.integers(0, 999))
    def say_again_what_was_granted(self, which: int) -> None:
        command = self.granted[which % len(self.granted)]
        if command.key is not None:
            assert decide(command, self.task) is None
        self.say(command)

    # The laws

    @invariant()
    def replaying_gives_the_same_task(self) -> None:
        task = INITIAL
        for recorded in self.records:
            task = evolve(task, recorded)
        assert task == self.task

    @invariant()
    def versions_are_dense_and_the_chain_is_whole(self) -> None:
        assert [recorded.record.version for recorded in self.records] == list(range(1, len(self.records) + 1))
        assert self.task.version == len(self.records)
        for before, after in pairwise(self.records):
            assert after.record.previous == before.sha256
            assert after.record.at >= before.record.at
            assert after.sequence > before.sequence

    @invariant()
    def nothing_follows_the_end(self) -> None:
        ends = [number for number, fact in enumerate(self.facts, 1) if isinstance(fact, Ending)]
        assert ends == ([len(self.records)] if self.task.ended else [])
        assert (self.task.ended_at is not None) == self.task.ended

    @invariant()
    def each_run_starts_once(self) -> None:
        runs = [fact.run for fact in self.facts if isinstance(fact, TaskStarted)]
        assert runs == list(range(1, self.task.run + 1))

    @invariant()
    def no_step_is_finished_twice(self) -> None:
        finished: list[int] = []
        for fact in self.facts:
            match fact:
                case StepFinished(step=step) | ToolUsed(step=step) | ReviewDecided(step=step):
                    finished.append(step)
                case PlanProposed(step=step, needs_approval=False):
                    finished.append(step)
                case InputReceived(step=int() as step):
                    finished.append(step)
                case _:
                    pass  # the others finish no step
        assert finished == list(range(self.task.steps))

    @invariant()
    def the_task_is_of_one_piece(self) -> None:
        task = self.task
        assert task.runnable == (task.status in {"pending", "queued"})
        assert (task.worker is not None) == (task.status == "running")
        assert task.in_hand is None or (task.status == "running" and task.in_hand.step == task.steps)
        assert not task.pause_requested or task.status in {"pending", "queued", "running"}
        assert task.question is None or task.review is None
        asked = task.question is not None or task.review is not None
        assert asked == (task.asked_step is not None)
        assert not asked or (
            task.asked_step == task.steps and task.status in {"waiting_for_input", "awaiting_review", "paused"}
        )
        assert (task.started_at is None) == (task.run == 0)
        assert task.text_step in {-1, task.steps}
        assert task.failures <= task.max_failures


OneTask.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestTheLawsOfATask = OneTask.TestCase
