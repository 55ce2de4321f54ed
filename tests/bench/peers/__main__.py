"""`make bench-peers`: the same work on what people use instead, in turn, in one run."""

import asyncio
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import click

from app.freezing import freeze
from app.logs import configure_logs
from tests.bench.figures import Figure
from tests.bench.machine import this_machine
from tests.bench.peers import comparing
from tests.bench.peers.asking import MISSING, can_ask
from tests.bench.peers.measuring import BY_WRK, MEASURES, NEAR_ALL, Values, measured
from tests.bench.peers.peer import PEERS, Peer
from tests.bench.running import Outcome, Report, begun, carry_out, nothing_left
from tests.bench.written import keep

ROUNDS = 3
A_PEER_S = 70.0
"""What one may take in one round: far more than it should."""


class Course:
    """What has been measured so far: of each service, and how busy the generators of load were."""

    def __init__(self) -> None:
        self.values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.busy: Values = {}

    async def once(self, peer: Peer, directory: Path) -> list[Figure]:
        """One service, started anew."""
        async with asyncio.timeout(A_PEER_S):
            values, busy = await measured(peer, directory)
        for name, value in values.items():
            self.values[name][peer.name].append(value)
        for name, part in busy.items():
            self.busy[name] = max(part, self.busy.get(name, 0.0))
        return []  # they are shown when all have been measured

    def outcomes(self, peers: list[Peer], seconds: float) -> list[Outcome]:
        """One a measure, with a figure a service."""
        return [
            Outcome(bench=name, seconds=seconds, figures=[self._figure(name, peer) for peer in peers])
            for name in MEASURES
        ]

    def _figure(self, name: str, peer: Peer) -> Figure:
        values = self.values[name][peer.name]
        without = MISSING if name in BY_WRK and not can_ask() else "it failed"
        return Figure(name=peer.name, values=values, unit="", missing="" if values else peer.missing or without)

    @property
    def about(self) -> str:
        """Whether the generators could go faster than what they loaded."""
        parts = [f"{name}: {part:.2f} at most" for name, part in self.busy.items()]
        slow = [name for name, part in self.busy.items() if part > NEAR_ALL]
        verdict = (
            f"So some figures may be the generator's limit ({', '.join(slow)})."
            if slow
            else "So they were not the limit."
        )
        return f"Each service was started anew in each round. {'; '.join(parts)}. {verdict}" if parts else ""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PEERS)))
@click.option("--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1), help="How often each is measured.")
@click.option(
    "--output",
    default="bench",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The directory for peers.json and peers.png.",
)
@click.option("--minutes", default=8.0, show_default=True, help="For all of it; what is not done by then has failed.")
@click.option(
    "--write",
    "page",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="A Markdown page to put the table into.",
)
def bench(names: tuple[str, ...], rounds: int, output: Path, minutes: float, page: Path | None) -> None:
    """Measure; without NAMES, all of them."""
    configure_logs("error", process="bench")
    freeze()
    report, course, since = begun(this_machine()), Course(), time.monotonic()
    peers = [PEERS[name] for name in names or PEERS]
    if not can_ask():
        click.secho(f"Only streams are measured: {MISSING}\n", fg="yellow")
    for peer in peers:
        if peer.missing:
            click.secho(f"{peer.name}: not measured, {peer.missing}\n", fg="yellow")
    try:
        with nothing_left():
            _take(report, course, peers, rounds, minutes * 60)
    except KeyboardInterrupt:
        page = None  # half a run is for whoever broke it off, not for the page
        raise
    finally:
        failed = [one for one in report.outcomes if one.failure]
        report.outcomes = [*course.outcomes(peers, time.monotonic() - since), *failed]
        report.about = course.about
        if course.values or failed:
            click.echo(f"\n{comparing.shown(report)}\n\n{report.about}\n")
            keep(report, output, page, "bench-peers", name="peers", draw=comparing.draw, body=comparing.markdown)
    sys.exit(report.failed)


def _take(report: Report, course: Course, peers: list[Peer], rounds: int, seconds: float) -> None:
    """In turn, again and again: what the machine does besides befalls all of them alike."""
    turns = {
        f"{peer.name}, round {number} of {rounds}": partial(course.once, peer)
        for number in range(1, rounds + 1)
        for peer in peers
        if not peer.missing
    }
    carry_out(report, turns, seconds)


if __name__ == "__main__":
    bench()
