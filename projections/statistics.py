"""Counts what happened: tasks and facts by day, by agent, by outcome, how long it took and what it cost. Pure.

A fact counts on its day, a task on the day it was created, its outcome and its length on the day it ended. What ended
is forgotten, and lengths are counted in steps of 2 %: it stays small however long the log is.
"""

import math
from collections import Counter, defaultdict
from datetime import date, datetime
from typing import Literal

import msgspec
from msgspec import Struct

from eventstore.events import (
    Owner,
    TaskCancelled,
    TaskCompleted,
    TaskCreated,
    TaskFailed,
    TaskTimedOut,
    Time,
    Usage,
)
from eventstore.log import Arrival, task_of_subject

Outcome = Literal["completed", "failed", "cancelled", "timed_out"]
OUTCOMES: tuple[Outcome, ...] = ("completed", "failed", "cancelled", "timed_out")
GROWTH = 1.02
"""From one step of lengths to the next: what is said of them is right to 1 %."""
SHORTEST_S = 0.001


class Window(Struct, frozen=True, kw_only=True):
    """What of the log counts: from `since` on, before `until`, of one owner."""

    since: Time | None = None
    until: Time | None = None
    owner: Owner | None = None

    def has(self, at: datetime) -> bool:
        """Whether this moment counts."""
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


class OfDay(Struct, kw_only=True):
    """A day's (UTC) figures."""

    day: date
    created: int = 0
    facts: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0


class OfAgent(Struct, kw_only=True):
    """An agent's figures; lengths, from creation to end, in seconds (None: nothing ended)."""

    agent: str
    created: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    timed_out: int = 0
    p50_s: float | None = None
    p95_s: float | None = None


class Spent(Struct, kw_only=True):
    """What one agent spent on one model on one day; `cost` in US dollars."""

    day: date
    agent: str
    model: str
    steps: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


class Figures(Struct, frozen=True, kw_only=True):
    """All that was counted. `facts` are by tag; `not_ended` counts tasks created within the window."""

    records: int
    unreadable: int
    created: int
    not_ended: int
    facts: dict[str, int]
    days: tuple[OfDay, ...]
    agents: tuple[OfAgent, ...]
    spent: tuple[Spent, ...]


class Lengths:
    """Lengths of time, counted in steps."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """One more."""
        self._counts[round(math.log(max(seconds, SHORTEST_S), GROWTH))] += 1

    def quantile(self, share: float) -> float | None:
        """The length that this share of them does not exceed, in seconds; None: there are none."""
        rank = math.ceil(share * self._counts.total())
        for step in sorted(self._counts):
            rank -= self._counts[step]
            if rank <= 0:
                return round(GROWTH**step, 3)
        return None


class _Fact(Struct, frozen=True):
    type: str = ""
    agent: str = ""
    usage: Usage | None = None


class _Seen(Struct):
    """What of a record is looked at."""

    at: Time
    fact: _Fact


class _Open(Struct, frozen=True):
    """A task that has not ended."""

    agent: str
    created_at: datetime
    counts: bool


CREATED = str(TaskCreated.__struct_config__.tag)
ENDS: dict[str, Outcome] = {
    str(TaskCompleted.__struct_config__.tag): "completed",
    str(TaskFailed.__struct_config__.tag): "failed",
    str(TaskCancelled.__struct_config__.tag): "cancelled",
    str(TaskTimedOut.__struct_config__.tag): "timed_out",
}
_seen = msgspec.json.Decoder(_Seen)


class Statistics:
    """Takes the log's records in order."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._records = 0
        self._unreadable = 0
        self._open: dict[str, _Open] = {}
        self._facts: Counter[str] = Counter()
        self._days: dict[date, OfDay] = {}
        self._agents: dict[str, OfAgent] = {}
        self._lengths: defaultdict[str, Lengths] = defaultdict(Lengths)
        self._spent: dict[tuple[date, str, str], Spent] = {}

    def take(self, arrival: Arrival) -> None:
        """The next record; what is no task's is passed over."""
        about = task_of_subject(arrival.subject)
        if about is None or self._window.owner not in (None, about[0]):
            return
        try:
            seen = _seen.decode(arrival.stored)
        except (msgspec.DecodeError, RecursionError):
            self._unreadable += 1
            return
        counts, kind = self._window.has(seen.at), seen.fact.type
        if counts:
            self._records += 1
            self._facts[kind] += 1
            self._day(seen.at).facts += 1
        if kind == CREATED:
            self._create(arrival.subject, seen, counts=counts)
        elif (outcome := ENDS.get(kind)) is not None:
            self._end(arrival.subject, seen.at, outcome, counts=counts)
        elif counts and seen.fact.usage is not None:
            self._spend(arrival.subject, seen.at, seen.fact.usage)

    def figures(self) -> Figures:
        """All that was counted so far."""
        for name, agent in self._agents.items():
            agent.p50_s, agent.p95_s = self._lengths[name].quantile(0.5), self._lengths[name].quantile(0.95)
        return Figures(
            records=self._records,
            unreadable=self._unreadable,
            created=self._facts[CREATED],
            not_ended=sum(task.counts for task in self._open.values()),
            facts=dict(sorted(self._facts.items())),
            days=tuple(self._days[day] for day in sorted(self._days)),
            agents=tuple(self._agents[name] for name in sorted(self._agents)),
            spent=tuple(self._spent[key] for key in sorted(self._spent)),
        )

    def _create(self, subject: str, seen: _Seen, *, counts: bool) -> None:
        self._open[subject] = _Open(seen.fact.agent, seen.at, counts)
        if counts:
            self._day(seen.at).created += 1
            self._agent(seen.fact.agent).created += 1

    def _end(self, subject: str, at: datetime, outcome: Outcome, *, counts: bool) -> None:
        task = self._open.pop(subject, None)
        if not counts:
            return
        _count(self._day(at), outcome)
        if task is not None:
            _count(self._agent(task.agent), outcome)
            self._lengths[task.agent].add((at - task.created_at).total_seconds())

    def _spend(self, subject: str, at: datetime, usage: Usage) -> None:
        task = self._open.get(subject)
        key = at.date(), task.agent if task else "", usage.model or ""
        spent = self._spent.setdefault(key, Spent(day=key[0], agent=key[1], model=key[2]))
        spent.steps += 1
        spent.input_tokens += usage.input_tokens
        spent.output_tokens += usage.output_tokens
        spent.cost = round(spent.cost + usage.cost, 10)

    def _day(self, at: datetime) -> OfDay:
        return self._days.setdefault(at.date(), OfDay(day=at.date()))

    def _agent(self, name: str) -> OfAgent:
        return self._agents.setdefault(name, OfAgent(agent=name))


def _count(figures: OfDay | OfAgent, outcome: Outcome) -> None:
    setattr(figures, outcome, getattr(figures, outcome) + 1)
