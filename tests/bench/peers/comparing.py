"""The peers side by side: a table whose columns are the services, a panel for each measure, and what each is."""

# matplotlib's keyword arguments have no types.
# pyright: reportUnknownMemberType=false

from pathlib import Path
from textwrap import fill

from app.wording import table
from tests.bench.drawing import EDGE, HATCH, MISSED, REACHED, WIDE
from tests.bench.figures import Figure, number
from tests.bench.peers.measuring import MORE_IS_BETTER
from tests.bench.peers.peer import PEERS, TASKTRAIL
from tests.bench.running import Report
from tests.bench.written import table_of

NAMES = [peer.name for peer in PEERS.values()]
ABOUT = ("keeps", "resumes", "checks", "runs")
LABELS = ("keeps tasks", "resumes a stream", "checks who asks", "runs")


def shown(report: Report) -> str:
    """For people, on a terminal."""
    parts = [
        table(("MEDIAN (TIMES TASKTRAIL'S)", *(name.upper() for name in NAMES)), _cells(report)),
        *_absent(report),
        "",
    ]
    for name, *words in _abouts():
        parts += [f"{name}:", *(f"  {label}: {said}" for label, said in zip(LABELS, words, strict=True))]
    return "\n".join(parts)


def markdown(report: Report) -> str:
    """For the page."""
    figures = table_of(("median (times Tasktrail's)", *NAMES), _cells(report))
    abouts = table_of(("", *LABELS), _abouts())
    return "\n\n".join(filter(None, [figures, "\n".join(f"- {line}" for line in _absent(report)), abouts]))


def _cells(report: Report) -> list[tuple[str, ...]]:
    return [
        (outcome.bench, *(_cell(outcome.figures, name) for name in NAMES))
        for outcome in report.outcomes
        if outcome.figures
    ]


def _cell(figures: list[Figure], name: str) -> str:
    found = {one.name: one for one in figures if one.values}
    if name not in found:
        return "-"
    ours, its = found.get(TASKTRAIL.name), found[name].median
    if ours is None or name == TASKTRAIL.name or ours.median <= 0 or its <= 0:
        return number(its)
    return f"{number(its)} ({its / ours.median:.2g})"


def _absent(report: Report) -> list[str]:
    """Who did not run, and why; what failed."""
    missing = {one.name: one.missing for outcome in report.outcomes for one in outcome.figures if one.missing}
    failed = [(outcome.bench, outcome.failure) for outcome in report.outcomes if outcome.failure]
    return [f"{name}: not measured, {why}" for name, why in [*missing.items(), *failed]]


def _abouts() -> list[tuple[str, ...]]:
    return [(peer.name, *(str(getattr(peer, field)) for field in ABOUT)) for peer in PEERS.values()]


def draw(report: Report, path: Path) -> None:
    """A panel for each measure, a bar for each service; ours is dark, the others are hatched."""
    from matplotlib.figure import Figure as Page  # without it there are still the table and the JSON

    measured = [outcome for outcome in report.outcomes if any(one.values for one in outcome.figures)]
    lines = max(1, -(-len(measured) // 2))
    page = Page(figsize=(12, 1 + 1.9 * lines), layout="constrained")
    page.suptitle(fill(report.machine.title, WIDE), fontsize="small")
    for place, outcome in enumerate(measured, 1):
        panel = page.add_subplot(lines, 2, place)
        better = "more" if outcome.bench in MORE_IS_BETTER else "less"
        panel.set_title(f"{outcome.bench} ({better} is better)", fontsize="medium")
        for line, one in enumerate(outcome.figures):
            ours = one.name == TASKTRAIL.name
            value = one.median if one.values else 0.0
            panel.barh(line, value, color=REACHED if ours else MISSED, hatch="" if ours else HATCH, edgecolor=EDGE)
            panel.text(
                value, line, f" {number(value) if one.values else 'not measured'}", va="center", fontsize="small"
            )
        panel.set_yticks(range(len(outcome.figures)), [one.name for one in outcome.figures], fontsize="small")
        panel.invert_yaxis()
        panel.margins(x=0.2)
        panel.locator_params(axis="x", nbins=4)
    page.savefig(path)
