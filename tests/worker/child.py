"""A process for tests to stop and kill: a dispatcher, or a worker of the simulator. Its argument is JSON, `Asked`."""

import asyncio
import sys
from pathlib import Path

import msgspec
import structlog

from app.agents.catalogue import Catalogue
from app.agents.simulator import Simulator
from app.logs import configure_logs
from app.projecting import run_projector
from app.settings import AgentSettings, LogSettings, WorkerSettings
from app.worker import run_worker
from eventstore.connection import NatsAddress

log = structlog.stdlib.get_logger()

Asked = tuple[str, str, WorkerSettings, str | None]


async def main(asked: Asked) -> None:
    url, name, settings, effects = asked
    log_settings = LogSettings(nats=NatsAddress(url=url))
    if name == "dispatcher":
        log.info("election.stands")
        await run_projector(log_settings, AgentSettings(), settings)
    else:
        simulator = Simulator(effects=Path(effects) if effects else None)
        await run_worker(log_settings, Catalogue([simulator], default="simulator"), settings, name)


if __name__ == "__main__":
    configure_logs()
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Asked)))
