"""Carries the checkpoints along the log: all that is new is signed every few minutes, on request, at a clean stop."""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import structlog
import uuid_utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.offices import hold_office
from app.settings import LogSettings
from eventstore.checkpointing import Signed, answering
from eventstore.connection import Connection
from eventstore.election import Election
from eventstore.jetstream import JetStreamLog
from eventstore.log import CHECKPOINTS, Arrival, EventLog, LogError, LogUnavailable, Replay, WrongExpectedSequence
from eventstore.replay import BATCH, LOOK_S, take_through
from projections.chain import Chain
from projections.proof import MAX_LEAVES, Leaves, named, signed

log = structlog.stdlib.get_logger()

OFFICE = "checkpoints"
ACTOR = "checkpoints"
LAST_WITHIN_S = 5.0


class Checkpoints:
    """Has read what is to be signed next; `close` last. Several may be at it: who is late changes nothing."""

    def __init__(self, event_log: EventLog, key: Ed25519PrivateKey) -> None:
        self._log = event_log
        self._key = key
        self._chain = Chain(named(key.public_key()))
        self._leaves = Leaves(0)
        self._replay: Replay | None = None
        self._busy = asyncio.Lock()

    @property
    def unsigned(self) -> int:
        """Records that no checkpoint covers yet, as last heard."""
        return self._leaves.records + (self._replay.lag if self._replay is not None else 0)

    async def write(self) -> Signed:
        """Sign all that is in the log now, if anything in it is new. Raises LogError."""
        async with self._busy:
            end = await self._log.last_sequence()
            await self._read_to(end)
            # What only others signed is signed anew by a new key, so that it is known.
            first = self._chain.mine is None and self._leaves.sequence > self._leaves.after
            if self._leaves.records or first:
                await self._sign()
            return self._told()

    async def take_in(self) -> None:
        """What has come since, so that there is little to read when it is to be signed. Raises LogError."""
        async with self._busy:
            replay = await self._begun()
            async with self._dropped_on_failure():
                await self._take(await replay.take(BATCH, within_s=LOOK_S))

    async def close(self) -> None:
        """Read no more; what is begun next begins from the last checkpoint."""
        replay, self._replay = self._replay, None
        if replay is not None:
            await replay.close()

    async def _begun(self) -> Replay:
        if self._replay is None:
            self._chain = await self._chain_now()
            self._leaves = Leaves(self._chain.covered)
            self._replay = await self._log.replay(after=self._chain.covered)
        return self._replay

    async def _chain_now(self) -> Chain:
        chain = Chain(named(self._key.public_key()))
        last = await self._log.last_checkpoint()
        if last is None:
            return chain
        chain.begin_at(last)
        replay = await self._log.replay(after=chain.covered, subjects=(CHECKPOINTS,))
        try:
            async with aclosing(take_through(replay, last.sequence)) as batches:
                async for batch in batches:
                    for arrival in batch:
                        chain.add(arrival)
        finally:
            await replay.close()
        return chain

    async def _read_to(self, end: int) -> None:
        async with self._dropped_on_failure(), aclosing(take_through(await self._begun(), end)) as batches:
            async for batch in batches:
                await self._take(batch)

    async def _take(self, batch: list[Arrival]) -> None:
        for arrival in batch:
            if arrival.subject == CHECKPOINTS:
                self._take_checkpoint(arrival)
            digest = hashlib.sha256(arrival.stored).digest()
            self._leaves.add(arrival.subject, arrival.sequence, digest)
        if self._leaves.sequence - self._leaves.after >= MAX_LEAVES:
            await self._sign()

    @asynccontextmanager
    async def _dropped_on_failure(self) -> AsyncGenerator[None]:
        """Where the log fails in between, what was read is dropped, and read anew."""
        try:
            yield
        except LogError:
            await self.close()
            raise

    def _take_checkpoint(self, arrival: Arrival) -> None:
        """Another's: to go on from, where another process has our key; nobody's, where somebody made it up."""
        if arrival.sequence > self._chain.at:
            self._chain.add(arrival)
            if self._chain.covered > self._leaves.after:
                self._leaves.drop(self._chain.covered)

    async def _sign(self) -> None:
        record = signed(
            self._key, str(uuid_utils.uuid7()), datetime.now(UTC), ACTOR, self._chain.previous, self._leaves
        )
        try:
            written = await self._log.append_checkpoint(record, self._chain.at)
        except WrongExpectedSequence as error:
            await self.close()
            raise LogUnavailable("another process writes checkpoints, too") from error
        except LogError:
            await self.close()
            raise
        self._leaves.drop(self._leaves.sequence)
        self._chain.add(written)
        log.info("checkpoint.written", sequence=written.sequence, covers=self._leaves.after)

    def _told(self) -> Signed:
        key = named(self._key.public_key())
        if self._chain.mine is None:
            return Signed(sequence=0, covers=0, key=key)
        return Signed(sequence=self._chain.mine.sequence, covers=self._chain.covered, key=key)


class Carrier:
    """Carries the checkpoints whenever no other projector does."""

    def __init__(self, log_settings: LogSettings, key: Ed25519PrivateKey, every_s: float) -> None:
        self._log_settings = log_settings
        self._key = key
        self._every_s = every_s
        self._checkpoints: Checkpoints | None = None

    @property
    def unsigned(self) -> int | None:
        """Records that no checkpoint covers yet; None: another projector signs, or nobody."""
        return None if self._checkpoints is None else self._checkpoints.unsigned

    async def run(self) -> None:
        """Until cancelled."""
        await hold_office(self._log_settings, OFFICE, self._carry)

    async def _carry(self, connection: Connection, event_log: JetStreamLog, election: Election) -> None:
        checkpoints = self._checkpoints = Checkpoints(event_log, self._key)
        try:
            async with answering(connection, checkpoints.write):
                due = time.monotonic() + self._every_s
                while election.leading:
                    await checkpoints.take_in()
                    if time.monotonic() >= due:
                        await checkpoints.write()
                        due = time.monotonic() + self._every_s
        finally:
            self._checkpoints = None
            # At a clean stop the last words are signed, too.
            if election.leading:
                await _last_words(checkpoints)
            await checkpoints.close()


async def _last_words(checkpoints: Checkpoints) -> None:
    try:
        async with asyncio.timeout(LAST_WITHIN_S):
            await checkpoints.write()
    except (LogError, TimeoutError) as error:
        log.warning("checkpoint.not_written", error=str(error) or "no time left")
