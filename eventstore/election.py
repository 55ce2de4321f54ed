"""One leader in the whole deployment: a key with a time to live in a bucket, renewed by whoever holds it.

The holder counts from before it asked, and trusts its term for two thirds of the time to live; the server counts from
when it stored, for all of it. So an old leader that is cut off has stopped before a new one can begin.
"""

import asyncio
import re
import time
from datetime import timedelta
from typing import Final
from uuid import uuid4

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventstore.connection import Connection, RefusedByServer
from eventstore.log import BadSubject, LogError, LogUnavailable
from eventstore.stream import Stream

log = structlog.stdlib.get_logger()

NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
BUCKET: Final = "KV_leader"
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
TRUSTED: Final = 2 / 3
"""The part of the time to live for which a leader trusts its last renewal."""
RENEWALS: Final = 5
"""Renewals, or a candidate's attempts, per time to live."""


class Election:
    """One candidate for one office. `open` first, `close` last."""

    def __init__(self, connection: Connection, name: str, ttl: timedelta, replicas: int) -> None:
        if not NAME.fullmatch(name):
            raise BadSubject(f"not an office: {name[:80]!r}")
        self._connection = connection
        self._stream = Stream(connection, BUCKET)
        self._name = name
        self._subject = f"$KV.leader.{name}"
        self._me = uuid4().hex.encode()
        self._ttl_s = ttl.total_seconds()
        self._replicas = replicas
        self._sequence = 0
        self._trusted_until = 0.0
        self._term: asyncio.Task[None] | None = None
        self._vacant = asyncio.Event()
        self._listening: Subscription | None = None

    @classmethod
    async def open(
        cls, connection: Connection, name: str, *, ttl: timedelta = timedelta(seconds=5), replicas: int = 1
    ) -> "Election":
        """Raises LogUnavailable, RefusedByServer, BadSubject. All candidates must agree on `ttl`."""
        election = cls(connection, name, ttl, replicas)
        await election._stream.open()
        await election._ensure()
        election._listening = await connection.subscribe(f"leader.{name}.vacant", election._on_vacant)
        return election

    @property
    def leading(self) -> bool:
        """Whether we certainly lead at this moment. Once False it stays so until `campaign` returns again."""
        return time.monotonic() < self._trusted_until

    async def campaign(self) -> None:
        """Return when we lead; however long that takes, whatever the server does meanwhile."""
        await self._end_term()
        while not await self._stand():
            try:
                await asyncio.wait_for(self._vacant.wait(), self._ttl_s / RENEWALS)
            except TimeoutError:
                continue
            finally:
                self._vacant.clear()
        log.info("election.leading", office=self._name)
        self._term = asyncio.create_task(self._serve(), name=f"leader {self._name}")

    async def deposed(self) -> None:
        """Return when we do not lead (any more)."""
        if self._term is not None:
            await asyncio.wait({self._term})

    async def resign(self) -> None:
        """Stop leading, and let the next one begin at once."""
        led = self.leading
        await self._end_term()
        if not led:
            return
        try:
            await self._vacate()
            # Only now: whoever hears this must find the key vacant.
            await self._connection.publish(f"leader.{self._name}.vacant")
        except LogError as error:
            log.info("election.resigned_silently", office=self._name, error=str(error))

    async def close(self) -> None:
        """Resign, and stand no more."""
        await self.resign()
        if self._listening is not None:
            await self._connection.unsubscribe(self._listening)
        await self._stream.close()

    async def _stand(self) -> bool:
        """Take the key if it is vacant, or ours."""
        asked_at = time.monotonic()
        try:
            if not self._connection.connected or not await self._find_open():
                return False
            await self._write(self._me)
        except RefusedByServer as error:  # someone was quicker
            log.debug("election.not_won", office=self._name, error=str(error))
            return False
        except LogUnavailable:
            await self._mend()
            return False
        self._trusted_until = asked_at + self._ttl_s * TRUSTED
        return self.leading

    async def _serve(self) -> None:
        """Renew until it can't be done in time, or someone else has the key."""
        every_s = pause_s = self._ttl_s / RENEWALS
        while self.leading:
            await asyncio.sleep(pause_s)
            asked_at = time.monotonic()
            pause_s = every_s / 4
            try:
                # While disconnected, the client would keep the renewal and send it late.
                if not self.leading or not self._connection.connected:
                    continue
                await self._write(self._me)
            except RefusedByServer as error:
                if error.err_code in WRONG_LAST_SEQUENCE and await self._is_lost():
                    self._trusted_until = 0.0
            except LogUnavailable:
                log.debug("election.not_renewed", office=self._name)
            else:
                pause_s = every_s
                if self.leading:
                    self._trusted_until = asked_at + self._ttl_s * TRUSTED
        log.warning("election.lost", office=self._name)

    async def _is_lost(self) -> bool:
        # A renewal that timed out may have been stored: then the key is still ours, at a sequence that we learn here.
        try:
            return not await self._find_open()
        except LogUnavailable:
            return False

    async def _find_open(self) -> bool:
        """Whether the key is vacant or ours, by the bucket's leader; notes the sequence to write over."""
        found = await self._stream.get(subject=self._subject)
        self._sequence = found.sequence if found else 0
        return found is None or found.stored in (b"", self._me)

    async def _vacate(self) -> None:
        # The renewal that was under way when the term ended may be stored between the look and the write: look again.
        for patience in (1, 0):
            try:
                if await self._find_open():
                    await self._write(b"")
                return
            except RefusedByServer as error:
                if not patience or error.err_code not in WRONG_LAST_SEQUENCE:
                    raise

    async def _write(self, holder: bytes) -> None:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self._sequence)}
        if not holder:
            headers["KV-Operation"] = "DEL"
        timeout_s = self._ttl_s / RENEWALS
        self._sequence = await self._stream.publish(self._subject, holder, headers=headers, timeout_s=timeout_s)

    async def _end_term(self) -> None:
        self._trusted_until = 0.0
        if self._term is not None:
            self._term.cancel()
            await asyncio.wait({self._term})
            self._term = None

    async def _ensure(self) -> None:
        await self._stream.ensure(
            {
                "subjects": ["$KV.leader.>"],
                "storage": "file",
                "max_msgs_per_subject": 1,
                "max_age": round(self._ttl_s * 1e9),
                "duplicate_window": round(min(self._ttl_s, 1.0) * 1e9),
                "allow_rollup_hdrs": True,
                "num_replicas": self._replicas,
            }
        )

    async def _mend(self) -> None:
        try:
            await self._ensure()
        except LogError as error:
            log.debug("election.no_bucket", office=self._name, error=str(error))

    async def _on_vacant(self, _: Msg) -> None:
        self._vacant.set()
