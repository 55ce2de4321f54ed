"""Figures, drawn: a bar for each that has an aim, as long as it comes near it. Readable without colours."""

# matplotlib's keyword arguments have no types.
# pyright: reportUnknownMemberType=false

from importlib.util import find_spec
from pathlib import Path
from textwrap import fill

from tests.bench.figures import Figure, number
from tests.bench.running import Report

INSTALL = "pip install '.[bench]'"
REACHED, MISSED, EDGE, AIM = "#37474f", "#cfd8dc", "#263238", "#000000"
HATCH = "///"
"""On what missed its aim: in greyscale too it is told apart."""
LONGEST = 2.5
"""Times the aim; a longer bar is cut there, and its number says how long it is."""
WIDE = 150


def can_draw() -> bool:
    """Whether matplotlib is here."""
    return find_spec("matplotlib") is not None


def draw_aims(report: Report, path: Path) -> None:
    """Every figure with an aim beside it; PNG or SVG, by the file's name."""
    from matplotlib.figure import Figure as Page  # without it there are still the table and the JSON

    aimed = [(outcome.bench, one) for outcome in report.outcomes for one in outcome.figures if one.reached is not None]
    page = Page(figsize=(12, 1.8 + 0.42 * max(len(aimed), 1)), layout="constrained")
    page.suptitle(fill(report.machine.title, WIDE), fontsize="small")
    panel = page.add_subplot()
    panel.set_title("what was reached, as a part of its aim; further right is better")
    if not aimed:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "no figure with an aim was measured", transform=panel.transAxes, ha="center")
        page.savefig(path)
        return
    for place, (_, one) in enumerate(aimed):
        full = nearness(one)
        panel.barh(
            place,
            min(full, LONGEST),
            color=REACHED if one.reached else MISSED,
            hatch="" if one.reached else HATCH,
            edgecolor=EDGE,
        )
        beside = min(max(full, 1.0), LONGEST) + 0.02  # never across the aim's line
        panel.text(beside, place, _said(one), va="center", fontsize="small")
    panel.axvline(1, color=AIM, linestyle="--", linewidth=1.5)
    panel.set_yticks(range(len(aimed)), [_label(bench, one) for bench, one in aimed], fontsize="small")
    panel.set_ylim(len(aimed) - 0.4, -0.6)
    panel.set_xlim(0, LONGEST + 1)
    panel.set_xticks([0, 0.5, 1, 1.5, 2], ["0", "0.5", "the aim", "1.5", "2 times"])
    page.savefig(path)


def nearness(figure: Figure) -> float:
    """1 is the aim, more is better, whichever way the aim goes."""
    aim = figure.aim or 0.0
    over, under = (figure.median, aim) if figure.than == "at least" else (aim, figure.median)
    return over / under if under else LONGEST


def _label(bench: str, figure: Figure) -> str:
    share = f", of {figure.share_of}" if figure.share_of else ""
    return fill(f"{bench}: {figure.name}{share}", 48)


def _said(figure: Figure) -> str:
    return f"{number(figure.median)} {figure.unit}".rstrip() + f" ({figure.than} {number(figure.aim or 0)})"
