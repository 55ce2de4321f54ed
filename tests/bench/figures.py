"""What is measured, and what it is measured against; how it is shown."""

import statistics
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from app.wording import table

Than = Literal["at least", "under"]


class Figure(Struct, frozen=True, kw_only=True):
    """One result: the runs' values, their unit, the aim. `share_of`: what it is a ratio to, taken in the same run.
    `missing`: why there are no values."""

    name: str
    values: list[float]
    unit: str
    share_of: str = ""
    aim: float | None = None
    than: Than = "at least"
    missing: str = ""

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the aim is; None where there is none."""
        if self.aim is None or self.missing:
            return None
        return self.median >= self.aim if self.than == "at least" else self.median < self.aim


def shown(figures: Sequence[Figure]) -> str:
    """As a table for people."""
    return table(("FIGURE", "MEDIAN", "RUNS", "", "AIM"), rows(figures))


def rows(figures: Sequence[Figure]) -> list[tuple[str, str, str, str, str]]:
    """A table's: name, median, the least and the most, what it is a share of, the aim and whether it is reached."""
    return [
        (
            one.name,
            one.missing or f"{number(one.median)} {one.unit}".rstrip(),
            f"{number(min(one.values))} to {number(max(one.values))}" if len(one.values) > 1 else "",
            one.share_of and f"of {one.share_of}",
            verdict(one),
        )
        for one in figures
    ]


def verdict(figure: Figure) -> str:
    """The aim, and whether it is reached; empty where there is none."""
    if figure.aim is None:
        return ""
    word = {True: "reached", False: "NOT reached", None: "not measured"}[figure.reached]
    return f"{figure.than} {number(figure.aim)}: {word}"


def number(value: float) -> str:
    """With as many digits as say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
