"""A bar in the terminal for what takes a while: how far it is, how fast, how long it still takes."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import rich.progress
from rich.console import Console

Show = Callable[[int, int], None]
"""Is told how far it is, and where the end is."""


@contextmanager
def bar(what: str = "") -> Generator[Show]:
    """On standard error; nothing where that is no terminal."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f}, {task.fields[rate]:,.0f} a second"),
        rich.progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        shown = progress.add_task(what, total=0, rate=0.0)
        first: tuple[int, float] | None = None

        def show(position: int, end: int) -> None:
            nonlocal first
            now = time.monotonic()
            # Where it begins is not where it came from: what an earlier try had done is not counted as speed.
            first = first or (position, now)
            rate = (position - first[0]) / max(now - first[1], 0.001)
            progress.update(shown, total=end, completed=position, rate=rate)

        yield show
