"""What is wrong for a while is told once in a while: a line a request, or two a second, would bury the rest."""

import time

EVERY_S = 30.0


class Seldom:
    """Remembers what was told last."""

    def __init__(self) -> None:
        self._told = ""
        self._until = 0.0

    def due(self, text: str) -> bool:
        """Whether to tell this now: it is something else than the last time, or that is long ago."""
        now = time.monotonic()
        if text == self._told and now < self._until:
            return False
        self._told, self._until = text, now + EVERY_S
        return True
