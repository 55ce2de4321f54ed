"""`make bench`: every figure beside its bare limit, taken in the same run; a table here, JSON and a plot beside it."""

import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click

from app.freezing import freeze
from app.logs import configure_logs
from tests.bench import appends, audit, durability, polls, scale, start, streams, views
from tests.bench.figures import Figure
from tests.bench.machine import this_machine
from tests.bench.running import Measuring, begun, carry_out, nothing_left
from tests.bench.written import keep
from tests.projections.databases import INSTALL, Cluster, cluster, programs

Bench = Callable[[Path, int, Cluster | None], Awaitable[list[Figure]]]
BENCHES: dict[str, Bench] = {
    "polls": polls.polls,
    "appends": appends.appends,
    "streams": streams.streams,
    "scale": scale.scales,
    "start": start.starts,
    "durability": durability.durability,
    "audit": audit.replays,
    "rebuild": views.rebuilds,
    "pages": views.pages,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option(
    "--records",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(1),
    help="How many records, or tasks, a log has.",
)
@click.option(
    "--output",
    default="bench",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory for figures.json and figures.png.",
)
@click.option("--minutes", default=10.0, show_default=True, help="For all of it; what is not done by then has failed.")
@click.option(
    "--write",
    "page",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="A Markdown page to put the table into.",
)
def bench(names: tuple[str, ...], records: int, output: Path, minutes: float, page: Path | None) -> None:
    """Measure; without NAMES, everything."""
    configure_logs("error", process="bench")
    freeze()  # as what is measured does it
    report = begun(this_machine())
    try:
        with nothing_left(), ExitStack() as stack:
            postgresql = None
            if programs() is None:
                click.echo(f"PostgreSQL is not installed, so it is not measured: {INSTALL}\n")
            else:
                postgresql = stack.enter_context(cluster())
            chosen: dict[str, Measuring] = {
                name: partial(_measured, BENCHES[name], records=records, postgresql=postgresql)
                for name in names or BENCHES
            }
            carry_out(report, chosen, minutes * 60)
    except KeyboardInterrupt:
        page = None  # half a run is for whoever broke it off, not for the page
        raise
    finally:
        keep(report, output, page, "bench")
    sys.exit(report.failed)


async def _measured(measure: Bench, directory: Path, *, records: int, postgresql: Cluster | None) -> list[Figure]:
    return await measure(directory, records, postgresql)


if __name__ == "__main__":
    bench()
