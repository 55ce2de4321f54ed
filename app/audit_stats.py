"""`audit stats`: what happened, by day, agent and outcome, as tables, as JSON, and as a plot."""

from contextlib import aclosing
from datetime import datetime
from pathlib import Path

import click
import msgspec

from app.asking import TIME
from app.audit_options import needs
from app.audit_sources import Place, ReadingCommand, opened
from app.freezing import run_frozen
from app.progress import bar
from app.replies import NotTried
from app.token_commands import OwnerType
from app.wording import lasted, table
from eventstore.events import Owner
from projections.statistics import OUTCOMES, Figures, OfAgent, OfDay, Statistics, Window

PLOTS = (".png", ".svg")


def plot_of(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """A file that can be drawn."""
    if value is not None and value.suffix.lower() not in PLOTS:
        raise click.BadParameter(f"{value}: it is drawn as .png or .svg", ctx, param)
    return value


@click.command(cls=ReadingCommand)
@click.option("--since", type=TIME, metavar="TIME", help="What happened from then on: 2026-01-31, say.")
@click.option("--until", type=TIME, metavar="TIME", help="What happened before then.")
@click.option("--owner", type=OwnerType(), help="Only this owner's tasks.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), callback=plot_of, help="Draw a .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@click.pass_obj
def stats(place: Place, plot: Path | None, as_json: bool, **window: datetime | Owner | None) -> None:
    """Count tasks and facts by day, agent and outcome, how long they took, and what they cost.

    Days are UTC's. A fact counts on its day, a task on that of its creation, its outcome and length on that of its end.
    Lengths are right to 1 %.

    \b
    Examples:
      tasktrail audit stats --since 2026-01-01 --plot january.png
      tasktrail audit stats --file log.ndjson --json
    """
    asked = msgspec.convert(window, Window)
    if asked.since is not None and asked.until is not None and asked.since >= asked.until:
        raise click.UsageError("--since is not before --until: nothing can lie between")
    if plot is not None:
        needs("matplotlib", "--plot")
    figures, what = run_frozen(_count(place, asked))
    if plot is not None:
        # Imported here: it takes matplotlib, which is an extra.
        from app.plots import draw

        try:
            draw(figures, what, plot)
        except OSError as error:
            raise NotTried(f"{plot}: {error.strerror or error}") from error
    click.echo(msgspec.json.encode(figures) if as_json else _tables(figures))


async def _count(place: Place, window: Window) -> tuple[Figures, str]:
    statistics = Statistics(window)
    async with opened(place) as at:
        end = await at.source.end()
        with bar("counting") as show:
            async with aclosing(at.source.arrivals(0, end)) as batches:
                async for batch in batches:
                    for arrival in batch:
                        statistics.take(arrival)
                    show(batch[-1].sequence, end)
        return statistics.figures(), at.what


def _tables(figures: Figures) -> str:
    parts = [
        f"{figures.created:,} tasks created, {figures.not_ended:,} of them not ended; {figures.records:,} facts",
        table(
            ("DAY", "CREATED", *(outcome.upper() for outcome in OUTCOMES), "FACTS"),
            [(str(day.day), f"{day.created:,}", *_outcomes(day), f"{day.facts:,}") for day in figures.days],
        ),
        table(
            ("AGENT", "CREATED", *(outcome.upper() for outcome in OUTCOMES), "P50", "P95"),
            [
                (one.agent, f"{one.created:,}", *_outcomes(one), _length(one.p50_s), _length(one.p95_s))
                for one in figures.agents
            ],
        ),
    ]
    if figures.spent:
        heads = ("DAY", "AGENT", "MODEL", "STEPS", "TOKENS IN", "TOKENS OUT", "COST USD")
        rows = [
            (
                str(one.day),
                one.agent,
                one.model,
                f"{one.steps:,}",
                f"{one.input_tokens:,}",
                f"{one.output_tokens:,}",
                f"{one.cost:,.4f}",
            )
            for one in figures.spent
        ]
        parts.append(table(heads, rows))
    if figures.unreadable:
        parts.append(f"{figures.unreadable:,} records can't be read and are not counted; `audit verify` names them")
    return "\n\n".join(parts)


def _outcomes(figures: OfDay | OfAgent) -> tuple[str, ...]:
    return tuple(f"{count:,}" for count in (figures.completed, figures.failed, figures.cancelled, figures.timed_out))


def _length(seconds: float | None) -> str:
    return "" if seconds is None else lasted(seconds)
