"""The logs and rooms that the walk's tests have."""

from collections.abc import AsyncGenerator

import pytest

from app.tasks import Tasks
from eventstore.connection import NatsAddress
from eventstore.log import EventLog
from eventstore.memory import MemoryLog
from tests.log.logs import jetstream
from tests.walk.lives import room


@pytest.fixture(params=["memory", "jetstream"])
def where(request: pytest.FixtureRequest) -> NatsAddress | None:
    """Where the log is; None: in memory."""
    if request.param == "memory":
        return None
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


@pytest.fixture
async def tasks(log: EventLog) -> AsyncGenerator[Tasks]:
    """A room on the log."""
    tasks = await room(log)
    yield tasks
    await tasks.close()


@pytest.fixture
async def other(log: EventLog) -> AsyncGenerator[Tasks]:
    """Another room on the same log, as another process would have one; its polls are strict."""
    other = await room(log, strict_reads=True)
    yield other
    await other.close()
