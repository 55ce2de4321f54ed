"""`make bench`: every figure beside its bare limit, taken in the same run; a table here, JSON where `--output` says."""

import os
import platform
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec
import uvloop

from app.freezing import freeze
from app.logs import configure_logs
from tests.bench import appends, audit, durability, polls, scale, start, streams, views
from tests.bench.figures import Figure, shown
from tests.projections.databases import Cluster, cluster, programs

Bench = Callable[[Path, int, Cluster | None], Awaitable[list[Figure]]]
BENCHES: dict[str, Bench] = {
    "rebuild": views.rebuilds,
    "pages": views.pages,
    "audit": audit.replays,
    "polls": polls.polls,
    "streams": streams.streams,
    "scale": scale.scales,
    "start": start.starts,
    "appends": appends.appends,
    "durability": durability.durability,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option("--records", default=1_000_000, show_default=True, help="How many records, or tasks, a log has.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file for the figures, as JSON.")
def bench(names: tuple[str, ...], records: int, output: Path | None) -> None:
    """Measure; without NAMES, everything."""
    configure_logs("error", process="bench")
    freeze()  # as what is measured does it
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    click.echo(f"{machine}\n")
    figures: list[Figure] = []
    everything = Path(tempfile.mkdtemp(prefix="tasktrail-bench-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, everything, ignore_errors=True)
        postgresql = None
        if programs() is None:
            click.echo("PostgreSQL is not installed, so it is not measured")
        else:
            postgresql = stack.enter_context(cluster())
        for name in names or BENCHES:
            directory = everything / name
            directory.mkdir()
            try:
                some = uvloop.run(_measured(BENCHES[name], directory, records, postgresql))
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            click.echo(f"{shown(some)}\n")
            figures += some
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": machine, "figures": figures})))


async def _measured(measure: Bench, directory: Path, records: int, postgresql: Cluster | None) -> list[Figure]:
    return await measure(directory, records, postgresql)


if __name__ == "__main__":
    bench()
