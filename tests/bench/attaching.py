"""Many tasks attached in a process of its own, so that its memory is its own: prints KiB before, and with them."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.commands import CreateTask
from app.freezing import freeze
from app.logs import configure_logs
from app.rooms import open_rooms
from app.settings import HttpSettings, LogSettings
from app.tasks import Cause, Tasks
from eventstore.connection import NatsAddress
from tests.bench.records import OWNER, numbered

AT_ONCE = 128
PAGE_KIB = 4


def resident_kib() -> float:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_KIB


async def created(tasks: Tasks, number: int) -> None:
    """One that begins here."""
    wish = CreateTask(agent="simulator", fingerprint=f"{number:064d}", input={"text": "What do the tides do?"})
    await tasks.create(OWNER, wish, Cause(actor="bench", correlation_id=f"{number:032d}"))


async def read(tasks: Tasks, number: int) -> None:
    """One that is in the log."""
    async with tasks.attach(OWNER, numbered(number)) as attached:
        assert attached.task.ended


async def attach(nats_url: str, count: int, one: Callable[[Tasks, int], Awaitable[None]]) -> tuple[float, float]:
    """KiB before and after."""
    http = HttpSettings(max_attached=2 * count)
    catalogue = Catalogue([Simulator()], default="simulator")
    async with open_rooms(LogSettings(nats=NatsAddress(url=nats_url)), http, catalogue) as rooms:
        numbers = iter(range(count))

        async def some() -> None:
            for number in numbers:
                await one(rooms.tasks, number)

        for number in (-1, -2):  # what is made at the first time is not theirs
            await created(rooms.tasks, abs(number))
        before = resident_kib()
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(some())
        assert rooms.tasks.attached_count == count + 2
        return before, resident_kib()


if __name__ == "__main__":
    configure_logs("error", process="bench")
    freeze()
    print(*uvloop.run(attach(sys.argv[1], int(sys.argv[2]), (created, read)[int(sys.argv[3])])))  # noqa: T201  # what it is for
