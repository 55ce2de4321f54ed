"""A sliding window: how many requests came in the last so many seconds, counted by sixtieths of it."""

PARTS = 60


class Window:
    """Forgets a request 59 to 60 sixtieths of `per_s` after it came: at most 60 numbers, however many requests.

    So whoever admits only while `used` is under a limit admits no more than that in any 59 sixtieths, and never
    refuses one who asks evenly. `now` is of any clock that does not go back.
    """

    __slots__ = ("_counts", "_part_s", "_total")

    def __init__(self, per_s: float) -> None:
        self._part_s = per_s / PARTS
        self._counts: dict[int, int] = {}
        self._total = 0

    def used(self, now: float) -> int:
        """How many it remembers."""
        oldest = int(now // self._part_s) - PARTS + 1
        while self._counts and (part := next(iter(self._counts))) < oldest:
            self._total -= self._counts.pop(part)
        return self._total

    def add(self, now: float, number: int = 1, *, age_s: float = 0.0) -> None:
        """So many came now, or that long ago."""
        part = int((now - age_s) // self._part_s)
        late = bool(self._counts) and part < next(reversed(self._counts))
        self._counts[part] = self._counts.get(part, 0) + number
        self._total += number
        if late:
            self._counts = dict(sorted(self._counts.items()))
        self.used(now)  # forgets what is over, also where nobody asks

    def ages(self, now: float) -> list[tuple[float, int]]:
        """What it remembers: how long ago, at least, how many came."""
        self.used(now)
        return [(max(0.0, now - (part + 1) * self._part_s), count) for part, count in self._counts.items()]

    def take_back(self, number: int = 1) -> None:
        """So many of the latest did not come after all."""
        while number > 0 and self._counts:
            part, count = self._counts.popitem()
            self._total -= min(count, number)
            if count > number:
                self._counts[part] = count - number
            number -= count

    def room_in(self, now: float, limit: int) -> float:
        """Seconds until it remembers fewer than that; 0: it does now."""
        left = self.used(now)
        for part, count in self._counts.items():
            if left < limit:
                return 0.0
            left -= count
            if left < limit:
                return (part + PARTS) * self._part_s - now
        return 0.0

    def changes_in(self, now: float) -> float:
        """Seconds until it forgets something; 0: it remembers nothing."""
        return self.room_in(now, self.used(now))
