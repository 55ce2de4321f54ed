"""One task that says something, each piece with the moment at which it was sent off; and the bare append beside it."""

import asyncio
import time
from datetime import UTC, datetime
from uuid import uuid4

import msgspec

from eventstore.client import Delivery
from eventstore.codec import encode
from eventstore.connection import Connection, NatsAddress
from eventstore.events import PartialProduced, Record, StepStarted, TaskCreated, TaskFact, TaskId, TaskStarted
from eventstore.log import Arrival, task_subject
from tests.bench.records import OWNER

MARK = "@"
"""Before the moment, in nanoseconds of the monotonic clock: what listeners.c looks for."""


BLANK = f"{MARK}{0:019d} "


class Speaker:
    """A running task, written past all that decides, by bare appends; `open` first, `close` last."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.task_id = TaskId(f"task_{uuid4()}")
        self._subject = task_subject(OWNER, self.task_id)
        self._last = Arrival(0, self._subject, b"")
        self._version = 0
        self._said = 0
        self._inbox = connection.new_inbox()
        self._answered: asyncio.Future[bytes] | None = None

    @classmethod
    async def open(cls, nats: NatsAddress) -> "Speaker":
        """A new task that has begun."""
        connection = await Connection.open(nats, "bench")
        speaker = cls(connection)
        await connection.take(speaker._inbox, speaker._on_answer)
        for fact in (
            TaskCreated(agent="none", fingerprint="f" * 64),
            TaskStarted(run=1, worker="bench"),
            StepStarted(run=1, step=0, kind="text", name="say"),
        ):
            await speaker._append(fact)
        return speaker

    async def say(self) -> float:
        """A piece of text that says when it was sent off; seconds until it was acknowledged."""
        text = PartialProduced(run=1, step=0, offset=self._said * len(BLANK), text=BLANK)
        self._said += 1
        return await self._append(text)

    async def say_at(self, rate: float, seconds: float) -> list[float]:
        """So many pieces a second, evenly, for so long; late ones follow at once. What `say` says of each."""
        took: list[float] = []
        since = time.monotonic()
        for number in range(int(rate * seconds)):
            wait_s = since + number / rate - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            took.append(await self.say())
        return took

    async def close(self) -> None:
        """Say no more."""
        await self.connection.close()

    async def _append(self, fact: TaskFact) -> float:
        self._version += 1
        record = Record(
            record_id=str(uuid4()),
            version=self._version,
            at=datetime.now(UTC),
            actor="bench",
            causation_id=None,
            correlation_id="bench",
            previous=self._last.sha256 if self._last.sequence else "",
            fact=fact,
        )
        stored, expected = encode(record), str(self._last.sequence)
        self._answered = asyncio.get_running_loop().create_future()
        since_ns = time.monotonic_ns()
        stored = stored.replace(BLANK.encode(), f"{MARK}{since_ns:019d} ".encode())
        headers = {"Nats-Expected-Last-Subject-Sequence": expected}
        await self.connection.publish(self._subject, stored, reply=self._inbox, headers=headers)
        answer = msgspec.json.decode(await self._answered, type=dict[str, object])
        took_s = (time.monotonic_ns() - since_ns) / 1e9
        assert "error" not in answer, answer
        self._last = Arrival(int(str(answer["seq"])), self._subject, stored)
        return took_s

    def _on_answer(self, said: Delivery) -> None:
        assert self._answered is not None
        self._answered.set_result(said.data)
