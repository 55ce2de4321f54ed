"""One rebuild of the views in a process of its own, so that its memory is its own: prints seconds and peak MiB."""

import resource
import sys
import time

import uvloop

from app.freezing import freeze
from app.logs import configure_logs
from eventstore.connection import Connection, NatsAddress
from eventstore.jetstream import JetStreamLog
from projections.database import Database
from projections.projector import Projector


async def rebuild(nats_url: str, views_url: str) -> float:
    """Seconds."""
    connection = await Connection.open(NatsAddress(url=nats_url), "bench")
    log = await JetStreamLog.open(connection)
    database = Database.open(views_url)
    projector = Projector(log, database)
    since = time.monotonic()
    await projector.run_to_end()
    seconds = time.monotonic() - since
    await projector.close()
    await database.close()
    await log.close()
    await connection.close()
    return seconds


if __name__ == "__main__":
    configure_logs("error", process="bench")
    freeze()
    seconds = uvloop.run(rebuild(*sys.argv[1:]))
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)  # noqa: T201  # what it is for
