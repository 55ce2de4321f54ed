"""Figures, drawn: small panels on one page. The only room that knows matplotlib."""

# matplotlib's keyword arguments have no types.
# pyright: reportUnknownMemberType=false

from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from projections.statistics import OUTCOMES, Figures, OfAgent, Outcome

COLOURS: dict[Outcome, str] = {
    "completed": "#2e7d32",
    "failed": "#c62828",
    "cancelled": "#757575",
    "timed_out": "#ef6c00",
}
QUIET, LOUD = "#90a4ae", "#37474f"
MOST = 8
"""Agents, or models, that are told apart; the rest is one."""
TICKS = 8
NOTHING = "nothing in this time"
LEAST_DAYS, LEAST_AGENTS = 7, 4
"""One day alone would be a wall."""
WIDE = 100
"""From the shortest to the longest: more does not fit on an even scale."""


def draw(figures: Figures, what: str, path: Path) -> None:
    """One page: PNG or SVG, by the file's name. Raises OSError."""
    page = Figure(figsize=(12, 8), layout="constrained")
    page.suptitle(f"{what}: {figures.created:,} tasks, {figures.records:,} facts")
    panels = [page.add_subplot(2, 2, number) for number in (1, 2, 3, 4)]
    _ends(panels[0], figures)
    _facts(panels[1], figures)
    _lengths(panels[2], figures)
    _spent(panels[3], figures)
    page.savefig(path)


def _ends(panel: Axes, figures: Figures) -> None:
    panel.set_title("tasks a day, by outcome")
    if not figures.days:
        _say_nothing(panel, NOTHING)
        return
    places = range(len(figures.days))
    below = [0] * len(figures.days)
    for outcome in OUTCOMES:
        counts = [_of(outcome, day.completed, day.failed, day.cancelled, day.timed_out) for day in figures.days]
        panel.bar(places, counts, bottom=below, color=COLOURS[outcome], label=outcome)
        below = [low + count for low, count in zip(below, counts, strict=True)]
    panel.plot(places, [day.created for day in figures.days], color=LOUD, marker=".", label="created")
    _name_days(panel, [day.day for day in figures.days])
    panel.legend(fontsize="small")


def _of(outcome: Outcome, *counts: int) -> int:
    return counts[OUTCOMES.index(outcome)]


def _facts(panel: Axes, figures: Figures) -> None:
    panel.set_title("facts a day")
    if not figures.days:
        _say_nothing(panel, NOTHING)
        return
    panel.bar(range(len(figures.days)), [day.facts for day in figures.days], color=QUIET)
    _name_days(panel, [day.day for day in figures.days])


def _lengths(panel: Axes, figures: Figures) -> None:
    panel.set_title("from creation to end, by agent: p50 and p95, seconds")
    ended = sorted((one for one in figures.agents if one.p95_s), key=_slowest, reverse=True)[:MOST]
    if not ended:
        _say_nothing(panel, "nothing ended in this time" if figures.days else NOTHING)
        return
    places = range(len(ended))
    halves, slows = [one.p50_s or 0.0 for one in ended], [one.p95_s or 0.0 for one in ended]
    panel.hlines(places, halves, slows, color=QUIET)
    panel.plot(halves, places, "o", color=LOUD, label="p50")
    panel.plot(slows, places, "D", color=QUIET, label="p95")
    panel.set_yticks(places, [one.agent for one in ended])
    panel.set_ylim(max(len(ended), LEAST_AGENTS) - 0.5, -0.5)
    if max(slows) > WIDE * min(halves):
        panel.set_xscale("log")
    else:
        panel.set_xlim(0, 1.1 * max(slows))
    panel.legend(fontsize="small")


def _slowest(agent: OfAgent) -> float:
    return agent.p95_s or 0.0


def _spent(panel: Axes, figures: Figures) -> None:
    """In dollars; where nothing cost any, in tokens."""
    dollars = any(one.cost for one in figures.spent)
    panel.set_title("cost a day, US dollars" if dollars else "tokens a day")
    if not figures.spent:
        _say_nothing(panel, "nothing was spent in this time" if figures.days else NOTHING)
        return
    days = sorted({one.day for one in figures.spent})
    by_model: defaultdict[str, defaultdict[date, float]] = defaultdict(lambda: defaultdict(float))
    for one in figures.spent:
        amount = one.cost if dollars else one.input_tokens + one.output_tokens
        by_model[one.model or "(no model named)"][one.day] += amount
    ranked = sorted(by_model, key=lambda model: -sum(by_model[model].values()))
    below = [0.0] * len(days)
    for model in ranked[:MOST]:
        amounts = [by_model[model][day] for day in days]
        panel.bar(range(len(days)), amounts, bottom=below, label=model)
        below = [low + amount for low, amount in zip(below, amounts, strict=True)]
    if len(ranked) > MOST:
        rest = [sum(by_model[model][day] for model in ranked[MOST:]) for day in days]
        panel.bar(range(len(days)), rest, bottom=below, label="others", color=QUIET)
    _name_days(panel, days)
    panel.legend(fontsize="small")


def _say_nothing(panel: Axes, why: str) -> None:
    panel.set_axis_off()
    panel.text(0.5, 0.5, why, transform=panel.transAxes, ha="center", color=QUIET)


def _name_days(panel: Axes, days: Sequence[date]) -> None:
    """Some of the days: all of a year would not fit."""
    every = max(1, -(-len(days) // TICKS))
    # Few days stand in the middle.
    beside = max(LEAST_DAYS - len(days), 0) / 2
    panel.set_xlim(-0.7 - beside, len(days) - 0.3 + beside)
    panel.set_xticks(range(0, len(days), every), [f"{day:%b %d}" for day in days[::every]])
