"""One task that says something, each piece with the moment at which it was sent off; and the bare append beside it."""

import asyncio
import time
from datetime import UTC, datetime
from uuid import uuid4

from eventstore.client import Delivery
from eventstore.connection import Connection, NatsAddress
from eventstore.events import PartialProduced, Record, StepStarted, TaskCreated, TaskFact, TaskId, TaskStarted
from eventstore.jetstream import JetStreamLog
from eventstore.log import Recorded
from tests.bench.records import OWNER

MARK = "@"
"""Before the moment, in nanoseconds of the monotonic clock: what listeners.c looks for."""


class Speaker:
    """A running task, written past all that decides; `open` first, `close` last."""

    def __init__(self, connection: Connection, log: JetStreamLog) -> None:
        self.connection = connection
        self.log = log
        self.task_id = TaskId(f"task_{uuid4()}")
        self._last: Recorded | None = None
        self._length = 0

    @classmethod
    async def open(cls, nats: NatsAddress) -> "Speaker":
        """A new task that has begun."""
        connection = await Connection.open(nats, "bench")
        speaker = cls(connection, await JetStreamLog.open(connection))
        await speaker.append(TaskCreated(agent="none", fingerprint="f" * 64))
        await speaker.append(TaskStarted(run=1, worker="bench"))
        await speaker.append(StepStarted(run=1, step=0, kind="text", name="say"))
        return speaker

    async def append(self, fact: TaskFact) -> Recorded:
        """One fact more."""
        last = self._last
        record = Record(
            record_id=str(uuid4()),
            version=1 if last is None else last.record.version + 1,
            at=datetime.now(UTC),
            actor="bench",
            causation_id=None,
            correlation_id="bench",
            previous="" if last is None else last.sha256,
            fact=fact,
        )
        self._last = await self.log.append(OWNER, self.task_id, record, 0 if last is None else last.sequence)
        return self._last

    async def say(self) -> None:
        """A piece of text that says when it was sent off."""
        text = f"{MARK}{time.monotonic_ns()} "
        await self.append(PartialProduced(run=1, step=0, offset=self._length, text=text))
        self._length += len(text)

    async def say_at(self, rate: float, seconds: float) -> int:
        """So many pieces a second, evenly, for so long; how many it were. Late ones follow at once."""
        count = int(rate * seconds)
        since = time.monotonic()
        for number in range(count):
            wait_s = since + number / rate - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            await self.say()
        return count

    async def appended_s(self) -> float:
        """Seconds of one bare append to the same log, awaited: to a subject of its own, without expectation."""
        inbox = self.connection.new_inbox()
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def hear(_: Delivery) -> None:
            answered.set_result(None)

        subscription = await self.connection.take(inbox, hear)
        since = time.monotonic()
        await self.connection.publish(f"tasks.0.bare.{uuid4()}", b"x" * 300, reply=inbox)
        await answered
        took_s = time.monotonic() - since
        await self.connection.unsubscribe(subscription)
        return took_s

    async def close(self) -> None:
        """Say no more."""
        await self.log.close()
        await self.connection.close()
