"""The two logs, and the one on JetStream that joins appends: whatever takes `log` runs once with each."""

from collections.abc import AsyncGenerator

import pytest

from eventstore import joining
from eventstore.connection import NatsAddress
from eventstore.log import EventLog
from eventstore.memory import MemoryLog
from tests.log.logs import jetstream


@pytest.fixture(params=["memory", "jetstream", "joined"])
def where(request: pytest.FixtureRequest) -> tuple[NatsAddress, bool] | None:
    """Where the log is, and whether it joins appends; None: in memory."""
    if request.param == "memory":
        return None
    # Asked for here and not by `log`: an async fixture can't wait for another one that it names only now.
    address: NatsAddress = request.getfixturevalue("nats_address")
    return address, request.param == "joined"


@pytest.fixture
async def log(where: tuple[NatsAddress, bool] | None, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[EventLog]:
    """The log in memory, then those on JetStream, all empty; what is joined is joined from two on."""
    monkeypatch.setattr(joining, "FROM", 2)
    if where is None:
        memory = MemoryLog()
        yield memory
        await memory.close()
    else:
        address, joins = where
        async with jetstream(address, joins=joins) as log:
            yield log
