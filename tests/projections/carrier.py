"""A projector as a process of its own, for tests to kill; its arguments: NATS URL, views URL, batch."""

import asyncio
import sys

from eventstore.connection import Connection, NatsAddress
from eventstore.jetstream import JetStreamLog
from projections.database import Database
from projections.projector import Progress, Projector


def tell(progress: Progress) -> None:
    print(progress.position, flush=True)  # noqa: T201  # whoever kills us reads how far we were


async def main(nats_url: str, views_url: str, batch: int) -> None:
    connection = await Connection.open(NatsAddress(url=nats_url), "carrier")
    log = await JetStreamLog.open(connection)
    await Projector(log, Database.open(views_url), on_progress=tell, batch=batch).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
