"""A run of benches, kept: as JSON and a plot in a directory, and as Markdown between two marks of a page, so that
nobody types a figure."""

from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from tests.bench.drawing import INSTALL, can_draw, draw_aims
from tests.bench.figures import Figure, rows
from tests.bench.running import Outcome, Report

HEADS = ("figure", "median", "runs", "", "aim")


class NoMarks(Exception):
    """The page has no place for such figures."""


def keep(
    report: Report,
    directory: Path,
    page: Path | None,
    what: str,
    *,
    name: str = "figures",
    draw: Callable[[Report, Path], None] = draw_aims,
    body: Callable[[Report], str] | None = None,
) -> None:
    """All three, of what was measured so far; says where. Nothing, where nothing was."""
    if not report.outcomes:
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_json(report, directory / f"{name}.json")
    click.echo(f"{directory / name}.json has every value")
    if can_draw():
        draw(report, directory / f"{name}.png")
        click.echo(f"{directory / name}.png shows them")
    else:
        click.echo(f"matplotlib is not installed, so nothing is drawn: {INSTALL}")
    if page is not None:
        page.write_text(put(page.read_text(), what, markdown(report, body)))
        click.echo(f"{page} has the table")


def write_json(report: Report, path: Path) -> None:
    """All values of all figures."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")


def markdown(report: Report, body: Callable[[Report], str] | None = None) -> str:
    """What was measured, where, and when; `body` writes the figures."""
    head = f"On {report.began:%Y-%m-%d}, on {report.machine.title}. Load average before it: {report.machine.load:.2f}."
    warning = f"**{report.machine.warning}**" if report.machine.warning else ""
    return "\n\n".join(filter(None, [head, warning, report.about, (body or _sections)(report)]))


def _sections(report: Report) -> str:
    return "\n\n".join(map(_section, report.outcomes))


def _section(outcome: Outcome) -> str:
    head = f"### {outcome.bench} ({outcome.seconds:.0f} s)"
    return f"{head}\n\n{f'Not measured: {outcome.failure}.' if outcome.failure else as_markdown(outcome.figures)}"


def as_markdown(figures: list[Figure]) -> str:
    """A table, as on the terminal."""
    return table_of(HEADS, [(name, *cells) for name, *cells in rows(figures)])


def table_of(heads: tuple[str, ...], cells: list[tuple[str, ...]]) -> str:
    """Of Markdown; the first column is words, the second and third are numbers."""
    lines = [heads, tuple("---:" if 0 < place < 3 else "---" for place in range(len(heads))), *cells]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def put(page: str, what: str, text: str) -> str:
    """The page with this text between the marks of `what`. Raises NoMarks."""
    begin, end = f"<!-- {what}: written by make {what}, not by hand -->\n", f"<!-- end of {what} -->"
    before, found, rest = page.partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise NoMarks(f"there is no {begin.strip()!r} with {end!r} after it")
    return f"{before}{begin}\n{text}\n\n{end}{after}"
