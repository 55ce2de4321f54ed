"""What a token may ask: its request budgets, counted in sliding windows by all API processes together.

How they agree, and why so, is told in `docs/decisions/limits.md`. Only what is counted here matters to a request:
without the others, this process counts by itself.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from math import ceil
from typing import Literal

import structlog
from msgspec import Struct

from app.auth import Principal
from app.metrics import Metrics
from app.settings import LimitSettings
from app.window import Window
from eventstore.connection import Connection
from eventstore.counts import Ages, Counts, counting
from eventstore.tokens import PLAN, Dialect, LimitName, Plan

log = structlog.stdlib.get_logger()

Budget = Literal["native", "niyra.ask", "niyra.execute", "niyra.poll", "shannon", "nanonets"]
"""What a route draws on."""
MINUTE, HOUR, DAY = 60, 3_600, 86_400
MAX_WINDOWS = 50_000
"""Over that, the oldest is forgotten: its token may ask anew."""
SWEEP_FROM = 1_024
ROUNDS = 10
"""So often a request waits for its process to have a larger share; then it is drawn as one of the last."""


class Allowance(Struct, frozen=True):
    """So many requests in any so many seconds; 0: as many as one likes."""

    name: LimitName
    limit: int
    per_s: int


class Standing(Struct, frozen=True):
    """How a token stands with an allowance. `changes_in_s`: then it may ask more than now."""

    name: LimitName
    limit: int
    remaining: int
    per_s: int
    changes_in_s: float


class RateLimited(Exception):
    """The token has asked as often as it may; `spent` is the allowance that takes longest to come back."""

    def __init__(self, standings: list[Standing]) -> None:
        self.standings = standings
        self.spent = max((one for one in standings if not one.remaining), key=lambda one: one.changes_in_s)
        rule = f"at most {self.spent.limit} such requests in {self.spent.per_s} seconds"
        super().__init__(f"{rule}; there is room again in {self.retry_after_s} s")

    @property
    def retry_after_s(self) -> int:
        """Whole seconds, at least one: then there is room again."""
        return max(1, ceil(self.spent.changes_in_s))


class _Counted:
    """One allowance of one token."""

    __slots__ = ("key", "last_one", "window")

    def __init__(self, key: str, per_s: int) -> None:
        self.key = key
        self.window = Window(per_s)
        self.last_one = asyncio.Lock()


class Limits:
    """All tokens' budgets, as this process knows them."""

    def __init__(
        self, settings: LimitSettings, figures: Metrics | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = figures
        self._allowances = allowances_of(settings)
        self._per_s = {one.name: one.per_s for some in self._allowances.values() for one in some}
        self._clock = clock
        self._others: Counts | None = None
        self._counted: dict[str, _Counted] = {}
        self._sweep_at = SWEEP_FROM

    @property
    def windows(self) -> int:
        """How many are kept."""
        return len(self._counted)

    @asynccontextmanager
    async def shared(self, connection: Connection, name: str) -> AsyncGenerator[Counts]:
        """While the context lasts, count together with all processes that do. Raises LogUnavailable."""
        async with counting(connection, name, self) as others:
            self._others = others
            yield others

    def on_counted(self, key: str, number: int) -> None:
        """Another process counted so many, or (less than none) took them back."""
        per_s = self._per_s.get(key.partition(":")[0])
        if per_s is None:
            return  # a newer release's
        window = self._find(key, per_s).window
        if number > 0:
            window.add(self._clock(), number)
        else:
            window.take_back(-number)

    def past(self) -> Iterator[tuple[str, Ages]]:
        """What is counted here, for a process that begins."""
        now = self._clock()
        for counted in list(self._counted.values()):
            if ages := counted.window.ages(now):
                yield counted.key, ages

    def on_past(self, key: str, ages: Ages) -> None:
        """What was counted before this process began."""
        if (per_s := self._per_s.get(key.partition(":")[0])) is not None:
            window = self._find(key, per_s).window
            for age_s, number in ages:
                window.add(self._clock(), number, age_s=age_s)

    def allowances(self, budget: Budget, plan: Plan = PLAN) -> list[Allowance]:
        """What a token of that plan may draw."""
        if plan.multiplier == 1 and not plan.limits:
            return list(self._allowances[budget])
        return [
            Allowance(one.name, plan.limits.get(one.name, one.limit * plan.multiplier), one.per_s)
            for one in self._allowances[budget]
        ]

    def counts(self, budget: Budget, plan: Plan = PLAN) -> bool:
        """Whether anything is counted of it, or told of it."""
        return any(one.limit for one in (*self._allowances[budget], *self.allowances(budget, plan)))

    def untouched(self, budget: Budget, plan: Plan = PLAN) -> list[Standing]:
        """How a token stands that has not asked, or whose requests are not counted."""
        return [
            Standing(one.name, one.limit, one.limit, one.per_s, float(one.per_s))
            for one in self.allowances(budget, plan)
            if one.limit
        ]

    async def draw(self, principal: Principal, budget: Budget) -> list[Standing]:
        """Count a request, and tell how the token stands. Raises RateLimited; such a request is not counted."""
        if principal.plan.unlimited:
            return self.untouched(budget, principal.plan)
        try:
            return await self._draw(principal, budget)
        except RateLimited as error:
            if self._metrics is not None:
                self._metrics.limited.labels(dialect_of(budget)).inc()
            log.info("limits.refused", token_id=principal.token_id, owner=principal.owner, limit=error.spent.name)
            raise

    def draw_at_once(self, principal: Principal, budget: Budget) -> list[Standing] | None:
        """As `draw`, where that needs to wait for nobody and is granted; else None, and nothing was counted."""
        if principal.plan.unlimited:
            return self.untouched(budget, principal.plan)
        drawn = self._drawn(principal, budget)
        if self._is_spent(drawn) or not self._is_within(drawn, [self._share(*pair) for pair in drawn]):
            return None
        return self._granted(drawn)

    def _drawn(self, principal: Principal, budget: Budget) -> "_Drawn":
        return [
            (one, self._find(f"{one.name}:{principal.purse[:32]}", one.per_s))
            for one in self.allowances(budget, principal.plan)
            if one.limit
        ]

    async def _draw(self, principal: Principal, budget: Budget) -> list[Standing]:
        drawn = self._drawn(principal, budget)
        for _ in range(ROUNDS):
            self._refuse_where_spent(drawn)
            shares = [self._share(one, counted) for one, counted in drawn]
            if self._is_within(drawn, shares):
                return self._granted(drawn)
            if 0 in shares:
                break
            await self._known()
        return await self._draw_last(drawn)

    def _is_within(self, drawn: "_Drawn", shares: list[int]) -> bool:
        """Whether this process may grant one more by itself."""
        return all(share > self._unknown(counted) for share, (_, counted) in zip(shares, drawn, strict=True))

    def _granted(self, drawn: "_Drawn") -> list[Standing]:
        self._count(drawn, 1)
        return [self._standing(one, counted) for one, counted in drawn]

    async def _draw_last(self, drawn: "_Drawn") -> list[Standing]:
        """One of the last, of which there are fewer than processes: it is granted once all know of it, and none of
        them has granted it meanwhile."""
        async with drawn[0][1].last_one:
            self._refuse_where_spent(drawn)
            self._count(drawn, 1)
            await self._known()
            standings = [self._standing(one, counted) for one, counted in drawn]
            if any(counted.window.used(self._clock()) > one.limit for one, counted in drawn):
                self._count(drawn, -1)
                raise RateLimited(standings)
            return standings

    def _share(self, one: Allowance, counted: "_Counted") -> int:
        """How many this process may grant that the others do not know of. They may grant as many."""
        if self._others is None:
            return one.limit
        known_to_all = counted.window.used(self._clock()) - self._unknown(counted)
        return max(0, one.limit - known_to_all) // (1 + self._others.others)

    def _unknown(self, counted: "_Counted") -> int:
        return 0 if self._others is None else self._others.unknown(counted.key)

    async def _known(self) -> None:
        if self._others is not None:
            await self._others.known()

    def _count(self, drawn: "_Drawn", number: int) -> None:
        for _, counted in drawn:
            if number > 0:
                counted.window.add(self._clock(), number)
            else:
                counted.window.take_back(-number)
            if self._others is not None:
                self._others.count(counted.key, number)

    def _is_spent(self, drawn: "_Drawn") -> bool:
        return any(counted.window.used(self._clock()) >= one.limit for one, counted in drawn)

    def _refuse_where_spent(self, drawn: "_Drawn") -> None:
        if self._is_spent(drawn):
            raise RateLimited([self._standing(one, counted) for one, counted in drawn])

    def _standing(self, one: Allowance, counted: "_Counted") -> Standing:
        now, window = self._clock(), counted.window
        remaining = max(0, one.limit - window.used(now))
        changes_in_s = window.changes_in(now) if remaining else window.room_in(now, one.limit)
        return Standing(one.name, one.limit, remaining, one.per_s, changes_in_s)

    def _find(self, key: str, per_s: int) -> "_Counted":
        found = self._counted.get(key)
        if found is None:
            if len(self._counted) >= self._sweep_at:
                self._sweep()
            found = self._counted[key] = _Counted(key, per_s)
        return found

    def _sweep(self) -> None:
        """Forget who has not asked for a whole window, and, over MAX_WINDOWS, whoever was first seen first."""
        now = self._clock()
        kept = [counted for counted in self._counted.values() if counted.window.used(now) or counted.last_one.locked()]
        self._counted = {counted.key: counted for counted in kept[-MAX_WINDOWS // 2 :]}
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._counted))


_Drawn = list[tuple[Allowance, _Counted]]


def allowances_of(settings: LimitSettings) -> dict[Budget, tuple[Allowance, ...]]:
    """A deployment's, by budget."""
    return {
        "native": (Allowance("native", settings.native_limit, MINUTE),),
        "niyra.ask": (Allowance("niyra.ask", settings.niyra_ask_limit, MINUTE),),
        "niyra.execute": (Allowance("niyra.execute", settings.niyra_execute_limit, MINUTE),),
        "niyra.poll": (Allowance("niyra.poll", settings.niyra_poll_limit, MINUTE),),
        "shannon": (
            Allowance("shannon.minute", settings.shannon_minute_limit, MINUTE),
            Allowance("shannon.hour", settings.shannon_hour_limit, HOUR),
            Allowance("shannon.day", settings.shannon_day_limit, DAY),
        ),
        "nanonets": (Allowance("nanonets", settings.nanonets_limit, MINUTE),),
    }


def dialect_of(budget: Budget) -> Dialect:
    """Whose it is."""
    match budget:
        case "native" | "shannon" | "nanonets":
            return budget
        case "niyra.ask" | "niyra.execute" | "niyra.poll":
            return "niyra"
