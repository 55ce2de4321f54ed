"""SIGKILL the projector anywhere, and start it again; or run two at once: the rows are a fold of the log."""

import asyncio
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from eventstore.connection import NatsAddress
from eventstore.events import SessionDeleted, SessionTitled
from eventstore.log import Arrival, EventLog
from projections.database import Database
from projections.sources import LogSource
from projections.views import Views
from projections.views_errors import ViewsUnavailable
from tests.given import completed, partial, started, tool_used
from tests.log.logs import jetstream
from tests.projections.lives import ANN, BOB, Scribe, born, carry, folded, in_step, sessions_in_step

TASKS = 60
KILLS = 6
WITHIN_S = 30.0


@asynccontextmanager
async def carrier(address: NatsAddress, views_url: str, *, batch: int) -> AsyncGenerator[Process]:
    """A projector that runs until it is killed; it says on its output how far it is."""
    words = ("-m", "tests.projections.carrier", address.url, views_url, str(batch))
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        await process.stdout.read()
        await process.wait()


async def reached(process: Process, sequence: int) -> None:
    """Return when it has taken in that much. Raises TimeoutError."""
    assert process.stdout is not None
    async with asyncio.timeout(WITHIN_S):
        while line := await process.stdout.readline():
            if line.strip().isdigit() and int(line) >= sequence:
                return
    raise AssertionError("the projector died by itself")


async def taken_in(views: Views, sequence: int) -> None:
    """Return when the views have that much and are served. Raises TimeoutError."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            with suppress(ViewsUnavailable):
                if await views.checkpoint() >= sequence:
                    return
            await asyncio.sleep(0.02)


async def live(scribe: Scribe, number: int) -> None:
    """One more task, some of it written by and by."""
    owner = (ANN, BOB)[number % 2]
    session_id = f"s{number % 5}"
    task_id = await scribe.task(born(f"Task {number}", session_id=session_id), started(), owner=owner)
    if number % 4 == 0:
        await scribe.session(owner, session_id, SessionTitled(title=f"Title {number}"))
    if number % 15 == 0:
        await scribe.session(owner, session_id, SessionDeleted())
    await scribe.write(owner, task_id, *(partial("x" * n, offset=n) for n in range(5)), tool_used())
    if number % 3:
        await scribe.write(owner, task_id, completed())


async def arrivals_in(log: EventLog) -> list[Arrival]:
    """All that the log holds."""
    return [one async for batch in LogSource(log).arrivals(0, await log.last_sequence()) for one in batch]


async def test_a_projector_killed_anywhere_goes_on_where_its_rows_are(
    nats_address: NatsAddress, views_url: str
) -> None:
    dice = random.Random(views_url)
    async with jetstream(nats_address) as log:
        scribe = Scribe(log)
        for number in range(TASKS):
            await live(scribe, number)
        for kill in range(KILLS):
            async with carrier(nats_address, views_url, batch=dice.choice([1, 7, 40])) as process:
                await reached(process, 1 + kill * TASKS)
                # While it writes, more comes; how much of it is in when it dies is left to chance.
                await live(scribe, TASKS + kill)
                await asyncio.sleep(dice.uniform(0, 0.02))
        database = Database.open(views_url)
        try:
            await carry(log, database)
            await in_step(database, folded(scribe.written), ANN, BOB)
            await sessions_in_step(database, await arrivals_in(log), ANN, BOB)
        finally:
            await database.close()


async def test_two_projectors_at_once_do_no_harm(nats_address: NatsAddress, views_url: str) -> None:
    async with jetstream(nats_address) as log:
        scribe = Scribe(log)
        async with (
            carrier(nats_address, views_url, batch=3) as one,
            carrier(nats_address, views_url, batch=5) as other,
        ):
            for number in range(TASKS):
                await live(scribe, number)
            database = Database.open(views_url)
            try:
                await taken_in(Views(database), await log.last_sequence())
                await in_step(database, folded(scribe.written), ANN, BOB)
                await sessions_in_step(database, await arrivals_in(log), ANN, BOB)
                assert one.returncode is None
                assert other.returncode is None
            finally:
                await database.close()
