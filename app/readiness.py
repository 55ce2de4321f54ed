"""How an API process says that it is ready: its name, a line in a pipe that its supervisor reads.

To ask the port tells of one of them only, and not of which.
"""

import asyncio
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress

from app.listening import ServeError

READ_BYTES = 64 * 1024


class NeverReady(ServeError):
    """The API did not become ready in time."""


class Readiness:
    """A supervisor's end of it. `descriptor` is what its children inherit, in all their lives. Build with `open`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._said: set[str] = set()
        self._more = asyncio.Event()

    @classmethod
    @contextmanager
    def open(cls) -> "Generator[Readiness]":
        """Listen for as long as the context lasts."""
        reading, descriptor = os.pipe()
        os.set_blocking(reading, False)
        readiness = cls(descriptor)
        loop = asyncio.get_running_loop()
        loop.add_reader(reading, readiness._read, reading)
        try:
            yield readiness
        finally:
            loop.remove_reader(reading)
            os.close(reading)
            os.close(descriptor)

    async def of_all(self, names: set[str], within_s: float) -> None:
        """Return once each of them was ready. Raises NeverReady."""
        try:
            async with asyncio.timeout(within_s):
                while not names <= self._said:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError as error:
            lacking = ", ".join(sorted(names - self._said))
            raise NeverReady(f"the API was not ready within {within_s:g} s: {lacking}") from error

    def _read(self, reading: int) -> None:
        # A line is written at once, and so read whole.
        self._said.update(os.read(reading, READ_BYTES).decode().split())
        self._more.set()


def say_ready(descriptor: int, name: str) -> None:
    """A child's word."""
    with suppress(OSError):  # a supervisor that is gone takes us along
        os.write(descriptor, f"{name}\n".encode())
