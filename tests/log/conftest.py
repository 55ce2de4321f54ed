"""The two logs: whatever takes `log` runs once with each."""

from collections.abc import AsyncGenerator

import pytest

from eventstore.connection import NatsAddress
from eventstore.log import EventLog
from eventstore.memory import MemoryLog
from tests.log.logs import jetstream


@pytest.fixture(params=["memory", "jetstream"])
def where(request: pytest.FixtureRequest) -> NatsAddress | None:
    """Where the log is; None: in memory."""
    if request.param == "memory":
        return None
    # Asked for here and not by `log`: an async fixture can't wait for another one that it names only now.
    address: NatsAddress = request.getfixturevalue("nats_address")
    return address


@pytest.fixture
async def log(where: NatsAddress | None) -> AsyncGenerator[EventLog]:
    """The log in memory, then the one on JetStream, both empty."""
    if where is None:
        memory = MemoryLog()
        yield memory
        await memory.close()
    else:
        async with jetstream(where) as log:
            yield log
