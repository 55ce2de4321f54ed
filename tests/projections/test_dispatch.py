"""The board: who runs next. Slots, order, timers, the lost, the sweep; and the same whatever it is rebuilt from."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from app.commands import TimeOutTask
from app.decide import Rejected, decide
from eventstore.events import Owner, TaskFact, TaskId, UnknownFact
from eventstore.log import Recorded
from projections.dispatch import Action, Board, ClearTimer, Hold, Offer, SetTimer, Suspect
from projections.task import INITIAL, Task, evolve
from tests.given import (
    BEGIN,
    DEADLINE,
    With,
    answer,
    cancelled,
    completed,
    created,
    input_requested,
    message,
    pause_requested,
    paused,
    queued,
    record_after,
    resumed,
    run_failed,
    started,
    timed_out,
)

ANN = Owner("ann")
NOW = BEGIN + timedelta(minutes=1)
RETRY = BEGIN + timedelta(minutes=30)
LEASES = timedelta(seconds=20)
LATER = NOW + timedelta(hours=2)
EMPTY: dict[str, int] = {}


def task(n: int) -> TaskId:
    return TaskId(f"task_00000000-0000-0000-0000-{n:012d}")


class Story:
    """Records of several tasks, their sequences dense over all of them, a second apart within each."""

    def __init__(self) -> None:
        self.records: list[Recorded] = []
        self._last: dict[int, Recorded] = {}

    def add(self, n: int, *facts: TaskFact | UnknownFact, at: datetime = BEGIN) -> list[Recorded]:
        new: list[Recorded] = []
        for fact in facts:
            recorded = record_after(self._last.get(n), With(fact=fact), owner=ANN, task_id=task(n), at=at)
            self._last[n] = recorded
            numbered = Recorded(
                sequence=len(self.records) + 1,
                owner=ANN,
                task_id=recorded.task_id,
                record=recorded.record,
                stored=recorded.stored,
            )
            self.records.append(numbered)
            new.append(numbered)
        return new


class Played:
    """A board, told a story as it goes."""

    def __init__(self, limit: int = 32, *, agents: dict[str, int] | None = None) -> None:
        self.board = Board(agents or {}, default_limit=limit)
        self.story = Story()

    def tell(self, n: int, *facts: TaskFact | UnknownFact, at: datetime = BEGIN) -> "Played":
        for recorded in self.story.add(n, *facts, at=at):
            self.board.take_in(recorded)
        return self

    def plan(self, now: datetime = NOW) -> list[Action]:
        return self.board.plan(now)

    def sweep(self, now: datetime = LATER, depth: dict[str, int] = EMPTY) -> list[Action]:
        return self.board.sweep(now, silent_for=LEASES, depth=depth)


def offered(actions: Iterable[Action]) -> list[int]:
    return [int(action.task_id[-12:]) for action in actions if isinstance(action, Offer)]


def held(actions: Iterable[Action]) -> list[int]:
    return sorted(int(action.task_id[-12:]) for action in actions if isinstance(action, Hold))


def timers(actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, SetTimer | ClearTimer)]


def test_a_new_task_is_offered_once() -> None:
    played = Played().tell(1, created())
    assert played.plan() == [Offer(owner=ANN, task_id=task(1), agent="simulator")]
    assert played.plan() == []
    assert played.tell(1, started()).plan() == []


def test_an_agent_at_its_limit_holds_the_rest_and_says_so_once() -> None:
    played = Played(2)
    for n in range(1, 6):
        played.tell(n, created())
    actions = played.plan()
    assert (offered(actions), held(actions)) == ([1, 2], [3, 4, 5])
    assert Hold(owner=ANN, task_id=task(3), limit=2) in actions
    assert played.plan() == []
    assert played.board.in_slots() == {"simulator": 2}


def test_a_free_slot_goes_to_the_oldest() -> None:
    played = Played(2)
    for n in (1, 2, 3, 4):
        played.tell(n, created())
    played.plan()
    played.tell(3, queued()).tell(4, queued()).tell(2, started(), completed())
    assert offered(played.plan()) == [3]
    played.tell(1, cancelled())
    assert offered(played.plan()) == [4]


def test_each_agent_has_a_limit_of_its_own() -> None:
    played = Played(2, agents={"researcher": 1})
    for n in (1, 2, 3):
        played.tell(n, created(agent="researcher")).tell(n + 10, created())
    actions = played.plan()
    assert sorted(offered(actions)) == [1, 11, 12]
    assert held(actions) == [2, 3, 13]


def test_a_task_that_waits_or_is_paused_holds_no_slot() -> None:
    played = Played(1).tell(1, created()).tell(2, created()).tell(3, created())
    assert offered(played.plan()) == [1]
    played.tell(1, started(), input_requested())
    assert offered(played.plan()) == [2]
    played.tell(2, started(), pause_requested(), paused())
    assert offered(played.plan()) == [3]


def test_an_answered_or_resumed_task_goes_before_newer_ones() -> None:
    played = Played(1).tell(1, created(), started(), input_requested()).tell(2, created(), started())
    played.tell(3, created()).tell(4, created(), started(), paused())
    assert held(played.plan()) == [3]
    played.tell(1, answer())
    played.tell(2, completed())
    assert offered(played.plan()) == [1]
    played.tell(4, resumed()).tell(1, started(2), completed(2))
    assert offered(played.plan()) == [3]


def test_a_task_paused_in_line_leaves_it_and_comes_back_to_its_place() -> None:
    played = Played(1).tell(1, created())
    played.plan()
    played.tell(2, created()).tell(3, created()).tell(2, paused())
    assert held(played.plan()) == [3]
    played.tell(2, resumed()).tell(1, cancelled())
    assert offered(played.plan()) == [2]
    assert played.board.in_slots() == {"simulator": 1}


def test_an_offered_task_that_is_paused_frees_its_slot_and_is_offered_again() -> None:
    played = Played(1).tell(1, created()).tell(2, created())
    played.plan()
    played.tell(1, paused())
    assert offered(played.plan()) == [2]
    played.tell(1, resumed()).tell(2, started(), completed())
    assert offered(played.plan()) == [1]


def test_a_message_to_a_task_changes_nothing_of_its_place() -> None:
    played = Played(1).tell(1, created()).tell(2, created())
    played.plan()
    played.tell(1, message()).tell(2, message())
    assert played.plan() == []


def test_what_only_a_newer_release_understands_is_left_to_it() -> None:
    played = Played().tell(1, created(), UnknownFact(tag="task.teleported", fields={}))
    assert played.plan() == []


def test_a_deadline_is_set_at_the_beginning_and_cleared_at_the_end() -> None:
    played = Played().tell(1, created(deadline=DEADLINE))
    assert timers(played.plan()) == [SetTimer(owner=ANN, task_id=task(1), kind="deadline", at=DEADLINE)]
    played.tell(1, started())
    assert played.plan() == []
    played.tell(1, completed())
    assert played.plan() == [ClearTimer(task_id=task(1), kind="deadline")]


def test_a_timer_that_was_never_set_is_not_cleared() -> None:
    assert Played().tell(1, created(deadline=DEADLINE), timed_out()).plan() == []


def test_a_broken_run_waits_for_its_retry_without_a_slot() -> None:
    played = Played(1).tell(1, created(), started()).tell(2, created())
    played.plan()
    played.tell(1, run_failed(retry_at=RETRY))
    actions = played.plan()
    assert timers(actions) == [SetTimer(owner=ANN, task_id=task(1), kind="retry", at=RETRY)]
    assert offered(actions) == [2]
    played.tell(2, started(), completed())
    assert played.plan(NOW) == []
    played.board.retry_due(task(1), RETRY - timedelta(seconds=1))
    assert played.plan(NOW) == []
    played.board.retry_due(task(1), RETRY)
    assert offered(played.plan(RETRY)) == [1]
    assert played.tell(1, started(2)).plan() == [ClearTimer(task_id=task(1), kind="retry")]


def test_a_later_retry_replaces_the_timer_of_the_one_before() -> None:
    second = RETRY + timedelta(minutes=5)
    played = Played().tell(1, created(), started(), run_failed(retry_at=RETRY))
    played.plan()
    played.tell(1, started(2), run_failed(2, retry_at=second))
    assert timers(played.plan()) == [SetTimer(owner=ANN, task_id=task(1), kind="retry", at=second)]


def test_a_run_that_broke_without_a_time_is_offered_at_once() -> None:
    assert offered(Played().tell(1, created(), started(), run_failed()).plan()) == [1]


def test_a_retry_timer_of_a_task_that_goes_on_is_moot() -> None:
    played = Played().tell(1, created(), started(), run_failed(retry_at=RETRY), started(2))
    played.plan()
    played.board.retry_due(task(1), LATER)
    played.board.retry_due(task(9), LATER)
    assert played.plan() == []


def test_what_a_lost_worker_ran_is_offered_at_once_with_the_run_that_is_lost() -> None:
    played = Played(3).tell(1, created(), started(worker="w1")).tell(2, created(), started(worker="w2"))
    played.tell(3, created(), started(worker="w1"), completed())
    played.plan()
    assert played.board.lost("w1") == [Offer(owner=ANN, task_id=task(1), agent="simulator", lost_run=1)]
    assert played.board.in_slots() == {"simulator": 2}


def test_what_a_worker_began_is_offered_even_if_its_death_was_heard_of_first() -> None:
    played = Played().tell(1, created())
    played.plan()
    assert played.board.lost("w1") == []
    played.tell(1, started(worker="w1"))
    assert played.plan() == [Offer(owner=ANN, task_id=task(1), agent="simulator", lost_run=1)]
    assert played.plan() == []
    assert played.tell(1, started(2, worker="w2", lost=True)).plan() == []


def test_what_could_not_be_carried_out_is_planned_again() -> None:
    played = Played(1).tell(1, created(deadline=DEADLINE)).tell(2, created())
    actions = played.plan()
    for action in actions:
        played.board.failed(action)
    assert sorted(map(repr, played.plan())) == sorted(map(repr, actions))
    played.tell(1, started())
    [lost] = played.board.lost("w1")
    played.board.failed(lost)
    assert played.plan() == [lost]


def test_what_failed_and_has_lost_its_point_is_not_planned_again() -> None:
    played = Played(1).tell(1, created(deadline=DEADLINE)).tell(2, created())
    actions = played.plan()
    played.tell(1, started(), completed()).tell(2, started())
    cleared = played.plan()
    for action in (*actions, *cleared):
        played.board.failed(action)
    assert played.plan() == [ClearTimer(task_id=task(1), kind="deadline")]
    [lost] = played.board.lost("w1")
    played.tell(2, started(2, worker="w2", lost=True))
    played.board.failed(lost)
    assert played.plan() == []


def test_a_timer_set_since_is_not_cleared_by_the_clearing_that_failed() -> None:
    second = RETRY + timedelta(minutes=5)
    played = Played().tell(1, created(), started(), run_failed(retry_at=RETRY))
    played.plan()
    [clear] = timers(played.tell(1, started(2)).plan())
    played.tell(1, run_failed(2, retry_at=second)).plan()
    played.board.failed(clear)
    assert played.plan() == []


def test_the_sweep_offers_again_what_was_lost_before_it_began() -> None:
    played = Played().tell(1, created()).tell(2, created())
    played.plan(NOW)
    assert played.sweep(NOW + timedelta(seconds=19)) == []
    assert offered(played.sweep(NOW + timedelta(seconds=21), {"simulator": 1})) == [1, 2]
    assert played.sweep(NOW + timedelta(seconds=22)) == []  # heard of just now
    assert played.sweep(LATER, {"simulator": 2}) == []  # nothing is lost: they wait for a worker


def test_the_sweep_suspects_what_runs_in_silence_once_or_as_long_as_items_are_lacking() -> None:
    suspect = Suspect(owner=ANN, task_id=task(1), agent="simulator", run=1)
    played = Played().tell(1, created(), started())
    assert played.sweep(BEGIN + timedelta(seconds=20)) == []
    assert played.sweep(LATER, {"simulator": 1}) == [suspect]
    assert played.sweep(LATER, {"simulator": 1}) == [suspect]  # its worker answered; who knows for how long
    played.board.offered_again(task(1))
    assert played.sweep(LATER, {"simulator": 2}) == []
    assert played.sweep(LATER, {"simulator": 0}) == [suspect]
    played.tell(1, message())
    assert played.sweep(LATER, {"simulator": 2}) == [suspect]


def test_the_sweep_finds_timers_that_got_lost() -> None:
    played = Played().tell(1, created(deadline=DEADLINE), started(), run_failed(retry_at=RETRY))
    played.plan()
    assert played.sweep(NOW) == []
    assert played.plan() == []
    assert played.sweep(DEADLINE + timedelta(minutes=1)) == [
        SetTimer(owner=ANN, task_id=task(1), kind="deadline", at=DEADLINE)
    ]
    assert offered(played.plan(LATER)) == [1]


def test_ended_tasks_are_forgotten() -> None:
    played = Played().tell(1, created(), started(), completed())
    assert len(played.board) == 0
    assert played.board.task(task(1)) == INITIAL
    assert played.plan() == played.sweep() == []


def stories(told: list[tuple[int, int]]) -> Story:
    """A story of four tasks, each fact one that may follow on its task's past."""
    story = Story()
    tasks = dict.fromkeys(range(4), INITIAL)
    for n, wish in told:
        fact = _next(tasks[n].status, wish, tasks[n].run, runnable=tasks[n].runnable)
        if fact is not None:
            [recorded] = story.add(n, fact)
            tasks[n] = evolve(tasks[n], recorded)
    return story


def _next(status: str, wish: int, run: int, *, runnable: bool) -> TaskFact | None:
    match status:
        case "absent":
            return created(deadline=DEADLINE if wish % 2 else None)
        case "pending" | "queued":
            choice: tuple[TaskFact | None, ...] = (
                queued() if status == "pending" and runnable else None,
                *(started(run + 1), started(run + 1), paused(), message(), cancelled()),
            )
        case "running":
            choice = (
                *(input_requested(run=run), run_failed(run, retry_at=RETRY), run_failed(run), paused()),
                *(completed(run), started(run + 1, lost=True)),
            )
        case "waiting_for_input":
            choice = (answer(), answer(), paused(), message(), cancelled())
        case "paused":
            choice = (resumed(), message(), cancelled())
        case _:
            return None
    return choice[wish % len(choice)]


told = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 59)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(told, st.integers(1, 3), st.lists(st.integers(0, 60), max_size=6))
def test_whenever_it_plans_it_offers_none_that_can_not_run_never_too_many_and_forgets_none(
    told: list[tuple[int, int]], limit: int, plans_at: list[int]
) -> None:
    story = stories(told)
    board = Board({}, default_limit=limit)
    tasks = dict.fromkeys((task(n) for n in range(4)), INITIAL)
    noted: set[TaskId] = set()
    for number, recorded in enumerate([*story.records, None]):
        if number in plans_at or recorded is None:
            actions = board.plan(NOW)
            for action in actions:
                if isinstance(action, Offer | Hold):
                    assert tasks[action.task_id].runnable
                    noted.add(action.task_id)
            # (A task may have begun that was not offered here: by an item of an earlier dispatcher.)
            assert not offered(actions) or board.in_slots()["simulator"] <= limit
            for id, one in tasks.items():
                if one.runnable and (one.retry_at is None or one.retry_at <= NOW):
                    assert id in noted or one.status == "queued"
        if recorded is not None:
            tasks[recorded.task_id] = evolve(tasks[recorded.task_id], recorded)
            board.take_in(recorded)


@settings(max_examples=150, deadline=None)
@given(told, st.integers(1, 3), st.integers(0, 60))
def test_a_board_rebuilt_from_the_log_wants_what_is_still_to_be_done(
    told: list[tuple[int, int]], limit: int, cut: int
) -> None:
    story = stories(told)
    rebuilt, other = Board({}, default_limit=limit), Board({}, default_limit=limit)
    tasks = dict.fromkeys((task(n) for n in range(4)), INITIAL)
    for number, recorded in enumerate(story.records):
        rebuilt.take_in(recorded)
        tasks[recorded.task_id] = evolve(tasks[recorded.task_id], recorded)
        other.take_in(recorded)
        if number == cut:
            other.plan(NOW)
    actions = rebuilt.plan(NOW)
    live = {id: one for id, one in tasks.items() if one.version and not one.ended}
    assert len(rebuilt) == len(other) == len(live)
    running = sum(one.status == "running" for one in live.values())
    ready = {id for id, one in live.items() if one.runnable and (one.retry_at is None or one.retry_at <= NOW)}
    told_of = {action.task_id for action in actions if isinstance(action, Offer | Hold)}
    assert told_of <= ready
    assert all(live[id].status == "queued" for id in ready - told_of)
    assert len(offered(actions)) == min(len(ready), max(0, limit - running))
    assert {action.task_id for action in timers(actions)} == {
        id for id, one in live.items() if one.deadline is not None or one.retry_at is not None
    }
    for action in timers(actions):
        if isinstance(action, SetTimer) and action.kind == "deadline":
            one = live[action.task_id]
            assert not isinstance(decide(TimeOutTask(deadline=action.at), one), Rejected)


@settings(max_examples=150, deadline=None)
@given(told, st.integers(1, 3), st.integers(0, 60))
def test_a_board_begun_with_the_views_is_one_that_was_told_the_whole_log(
    told: list[tuple[int, int]], limit: int, checkpoint: int
) -> None:
    story = stories(told)
    whole, begun = Board({}, default_limit=limit), Board({}, default_limit=limit)
    tasks: dict[TaskId, tuple[Task, int]] = {}
    for recorded in story.records[:checkpoint]:
        whole.take_in(recorded)
        before, place = tasks.get(recorded.task_id, (INITIAL, recorded.sequence))
        tasks[recorded.task_id] = evolve(before, recorded), place
    for one, place in tasks.values():
        if not one.ended:
            begun.begin_with(one, place)
    for recorded in story.records[checkpoint:]:
        whole.take_in(recorded)
        begun.take_in(recorded)
    wanted, planned = whole.plan(NOW), begun.plan(NOW)
    # (It knows nothing of timers that were set and have lost their point before: there is nothing to clear.)
    assert {repr(action) for action in planned} <= {repr(action) for action in wanted}
    assert all(isinstance(action, ClearTimer) for action in wanted if action not in planned)
    assert offered(planned) == offered(wanted)
    assert sorted(begun, key=lambda one: one.task_id) == sorted(whole, key=lambda one: one.task_id)
    assert begun.in_slots() == {agent: slots for agent, slots in whole.in_slots().items() if agent in begun.in_slots()}
    found, wanted = (board.sweep(LATER, silent_for=LEASES, depth=EMPTY) for board in (begun, whole))
    assert sorted(map(repr, found)) == sorted(map(repr, wanted))


def test_a_hundred_thousand_live_tasks_of_many_agents_are_a_matter_of_seconds() -> None:
    firsts = [record_after(None, created(agent=f"agent{n}", deadline=DEADLINE)) for n in range(200)]
    records = [
        Recorded(sequence=n, owner=ANN, task_id=task(n), record=firsts[n % 200].record, stored=firsts[n % 200].stored)
        for n in range(1, 100_001)
    ]
    board = Board({}, default_limit=10)
    began = time.process_time()
    for recorded in records:
        board.take_in(recorded)
    actions = board.plan(datetime.now(UTC))
    assert len(offered(actions)) == 2_000
    assert len(timers(actions)) == 100_000
    for _ in range(5):
        board.sweep(LATER, silent_for=LEASES, depth={})
        board.plan(LATER)
    # (About 2 s; each agent looking at all tasks in each sweep would be 100 million looks.)
    assert time.process_time() - began < 30
