"""Carries out benches one after another, within a time, and says which is under way. A bench that fails loses its own
figures and no other's; whatever it leaves running is ended."""

import asyncio
import shutil
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click
import uvloop
from msgspec import Struct

from tests.bench.figures import Figure, shown
from tests.bench.leftovers import adopt, children, kill_all_but, kill_in_loop
from tests.bench.machine import Machine

Measuring = Callable[[Path], Awaitable[list[Figure]]]
"""Measures, in a directory of its own that is removed afterwards; the one that it is in goes when all are done."""


class Outcome(Struct, frozen=True, kw_only=True):
    """Of one bench: its figures, or why there are none."""

    bench: str
    seconds: float
    figures: list[Figure] = []
    failure: str = ""


class Report(Struct, kw_only=True):
    """Of one run of benches, on one machine. `about` is what a reader has to know, as Markdown."""

    machine: Machine
    began: datetime
    outcomes: list[Outcome] = []
    about: str = ""

    @property
    def failed(self) -> bool:
        """Whether any bench has."""
        return any(one.failure for one in self.outcomes)


def begun(machine: Machine) -> Report:
    """A report without outcomes; says on the terminal what machine this is."""
    click.echo(machine.title)
    if machine.warning:
        click.secho(machine.warning, fg="yellow")
    click.echo()
    return Report(machine=machine, began=datetime.now(UTC))


@contextmanager
def nothing_left() -> Generator[None]:
    """What was started in here ends with it, however it ends."""
    adopt()
    kept = children()
    try:
        yield
    finally:
        kill_all_but(kept)


def carry_out(report: Report, benches: Mapping[str, Measuring], seconds: float) -> None:
    """All of them, with so many seconds together; the report has each as soon as it is done. Ctrl-C goes through."""
    with tempfile.TemporaryDirectory(prefix="tasktrail-bench-", ignore_cleanup_errors=True) as everything:
        _carry_out(report, benches, seconds, Path(everything))


def _carry_out(report: Report, benches: Mapping[str, Measuring], seconds: float, everything: Path) -> None:
    until = time.monotonic() + seconds
    for number, (name, measure) in enumerate(benches.items()):
        left = until - time.monotonic()
        if left <= 0:
            outcome = Outcome(
                bench=name, seconds=0, failure=f"not begun: the {seconds:.0f} s for all of them were over"
            )
        else:
            click.echo(f"{name}: under way")
            outcome = _carried_out(name, measure, left, everything / f"{number}")
        report.outcomes.append(outcome)
        if outcome.failure:
            click.secho(f"{name}: FAILED after {outcome.seconds:.0f} s: {outcome.failure}\n", fg="red")
        else:
            click.echo(f"{name}: took {outcome.seconds:.0f} s")
            if outcome.figures:
                click.echo(f"{shown(outcome.figures)}\n")


def _carried_out(name: str, measure: Measuring, left_s: float, directory: Path) -> Outcome:
    directory.mkdir()
    kept, since = children(), time.monotonic()
    figures, failure = list[Figure](), ""
    try:
        figures = uvloop.run(_within(left_s, measure, directory, kept))
    except TimeoutError:
        failure = f"it was not done within the {left_s:.0f} s that were left"
    except Exception as error:
        traceback.print_exception(error)
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return Outcome(bench=name, seconds=time.monotonic() - since, figures=figures, failure=failure)


async def _within(seconds: float, measure: Measuring, directory: Path, kept: set[int]) -> list[Figure]:
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            return await measure(directory)
    except TimeoutError as error:
        if timeout.expired():
            raise
        # One of the bench's own: that is a failure, and where it came from matters.
        raise RuntimeError("something that it waited for did not come in time") from error
    finally:
        # Another bench's figures would suffer from what still ran.
        await kill_in_loop(kept)
