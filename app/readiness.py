"""What a supervisor and its API processes say to each other, by two pipes: go, and ready.

An API process is begun while nats-server begins, and waits for it where it would connect. When it is ready it says its
name: to ask the port would tell of one of them only, and not of which.
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
    """A supervisor's ends. `inherited` are its children's, in all their lives: where to wait, and where to say. Build
    with `open`."""

    def __init__(self, inherited: tuple[int, int], going: int) -> None:
        self.inherited = inherited
        self._going: int | None = going
        self._said: set[str] = set()
        self._more = asyncio.Event()

    @classmethod
    @contextmanager
    def open(cls) -> "Generator[Readiness]":
        """Listen for as long as the context lasts."""
        waiting, going = os.pipe()
        reading, saying = os.pipe()
        os.set_blocking(reading, False)
        readiness = cls((waiting, saying), going)
        loop = asyncio.get_running_loop()
        loop.add_reader(reading, readiness._read, reading)
        try:
            yield readiness
        finally:
            loop.remove_reader(reading)
            readiness.go()
            for one in (waiting, reading, saying):
                os.close(one)

    def go(self) -> None:
        """Those who wait, and all who come later, need not wait."""
        going, self._going = self._going, None
        if going is not None:
            os.close(going)

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


def wait_to_go(descriptor: int) -> None:
    """For a child: return once it may go on."""
    os.read(descriptor, 1)  # nothing is ever written: what ends it is that the other end is closed


def say_ready(descriptor: int, name: str) -> None:
    """A child's word."""
    with suppress(OSError):  # a supervisor that is gone takes us along
        os.write(descriptor, f"{name}\n".encode())
