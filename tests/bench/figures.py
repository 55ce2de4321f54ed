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
    rows = [
        (
            one.name,
            one.missing or f"{_number(one.median)} {one.unit}".rstrip(),
            f"{_number(min(one.values))} to {_number(max(one.values))}" if len(one.values) > 1 else "",
            one.share_of and f"of {one.share_of}",
            ""
            if one.reached is None
            else f"{one.than} {_number(one.aim or 0)}: {'' if one.reached else 'NOT '}reached",
        )
        for one in figures
    ]
    return table(("FIGURE", "MEDIAN", "RUNS", "", "AIM"), rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
