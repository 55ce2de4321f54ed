"""One timer for all quiet streams of a process: who has heard nothing for a while is pinged, and looked after."""

import asyncio
from asyncio import TimerHandle

from app.readers import Reader, Said, tell

SPOKES = 16
"""Readers are looked at a part at a time: ten thousand at once would hold up everybody."""
ROUNDS = 4
"""How often each is looked at in the time within which something has to be said."""


class Wheel:
    """Says `ping` to whoever heard nothing, so that no silence is longer than `ping_s`."""

    def __init__(self, ping: bytes, ping_s: float) -> None:
        self._ping = Said((ping,))
        self._every_s = ping_s / ROUNDS / SPOKES
        # Whoever is passed over now is looked at again a round later, and must not have been silent for too long then.
        self._quiet_s = ping_s * (ROUNDS - 1) / ROUNDS
        self._spokes: list[set[Reader]] = [set() for _ in range(SPOKES)]
        self._at = 0
        self._readers = 0
        self._loop = asyncio.get_running_loop()
        self._timer: TimerHandle | None = None

    @property
    def longest_s(self) -> float:
        """The longest silence that it allows."""
        return self._quiet_s + self._every_s * SPOKES

    @property
    def turns(self) -> bool:
        """Whether there is anybody to look after."""
        return self._timer is not None

    def add(self, reader: Reader) -> int:
        """From now on; gives its place, to `remove` it from."""
        place = self._at - 1
        self._spokes[place].add(reader)
        self._readers += 1
        if self._timer is None:
            self._timer = self._loop.call_later(self._every_s, self._turn)
        return place

    def remove(self, reader: Reader, place: int) -> None:
        """No more."""
        self._spokes[place].discard(reader)
        self._readers -= 1

    def _turn(self) -> None:
        now = self._loop.time()
        for reader in list(self._spokes[self._at]):
            reader.look(now)
            if now - reader.said_at >= self._quiet_s:
                tell(reader, self._ping, now)
        self._at = (self._at + 1) % SPOKES
        self._timer = self._loop.call_later(self._every_s, self._turn) if self._readers else None
