"""A replay of a whole log through the fold, in a process of its own: prints seconds."""

import sys
import time

import uvloop

from app.freezing import freeze
from app.logs import configure_logs
from eventstore import codec
from eventstore.connection import Connection, NatsAddress
from eventstore.jetstream import JetStreamLog
from eventstore.replay import take_through
from projections.task import INITIAL, Task, evolve


async def fold(nats_url: str) -> float:
    """Seconds."""
    connection = await Connection.open(NatsAddress(url=nats_url), "bench")
    log = await JetStreamLog.open(connection)
    tasks: dict[str, Task] = {}
    since = time.monotonic()
    last = await log.last_sequence()
    replay = await log.replay(after=0)
    async for arrivals in take_through(replay, last):
        for arrival in arrivals:
            tasks[arrival.subject] = evolve(tasks.get(arrival.subject, INITIAL), codec.recorded(arrival))
    seconds = time.monotonic() - since
    assert all(task.ended for task in tasks.values())
    await replay.close()
    await log.close()
    await connection.close()
    return seconds


if __name__ == "__main__":
    configure_logs("error", process="bench")
    freeze()
    print(uvloop.run(fold(sys.argv[1])))  # noqa: T201  # what it is for
