"""Bare appends: what nats-py's plain client can do with the same bytes and an expected sequence, and nothing around."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

from msgspec import json
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from eventstore.connection import NatsAddress

STREAM = "BARE"
SUBJECTS = "bared.>"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
NEW = {EXPECTED: "0"}
"""Nothing is on the subject yet."""

Append = Callable[[str, bytes], Awaitable[object]]


class Bare:
    """Such a client, and a stream like the log's."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream: JetStreamContext = client.jetstream()  # pyright: ignore[reportUnknownMemberType]  # nats-py: untyped
        self._inbox = client.new_inbox()
        self._tokens = itertools.count()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, nats: NatsAddress) -> "Bare":
        """Connect, and make the stream where there is none."""
        client = Client()
        await client.connect(servers=[nats.url], pending_size=64 * 1024 * 1024)
        bare = cls(client)
        await client.subscribe(f"{bare._inbox}.*", cb=bare._on_acknowledged)  # pyright: ignore[reportUnknownMemberType]  # nats-py: a bare Future
        config = {"storage": "file", "discard": "new", "allow_direct": True, "allow_atomic": True}
        config |= {"name": STREAM, "subjects": [SUBJECTS], "duplicate_window": 100_000_000}
        made = await client.request(f"$JS.API.STREAM.CREATE.{STREAM}", json.encode(config))
        assert b'"error"' not in made.data, made.data
        return bare

    async def by_request(self, subject: str, payload: bytes) -> None:
        """Append as nats-py itself does it: a request, whose answer it waits for."""
        await self._jetstream.publish(subject, payload, headers=NEW, timeout=30)

    async def by_inbox(self, subject: str, payload: bytes) -> None:
        """Append with an acknowledgement inbox of our own and a dictionary of who waits."""
        token = f"{next(self._tokens):x}"
        future = self._waiting[token] = self._loop.create_future()
        await self._client.publish(subject, payload, reply=f"{self._inbox}.{token}", headers=NEW)
        acknowledged = await future
        assert b'"error"' not in acknowledged, acknowledged

    async def by_batch(self, appends: Sequence[tuple[str, bytes]]) -> None:
        """Append all of them or none, with one acknowledgement."""
        batch = uuid4().hex
        for number, (subject, payload) in enumerate(appends[:-1], 1):
            await self._client.publish(
                subject, payload, headers={"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number), **NEW}
            )
        subject, payload = appends[-1]
        last = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(appends)), "Nats-Batch-Commit": "1", **NEW}
        acknowledged = await self._client.request(subject, payload, headers=last, timeout=30)
        assert b'"error"' not in acknowledged.data, acknowledged.data

    async def close(self) -> None:
        """Let go of it."""
        await self._client.close()

    async def _on_acknowledged(self, msg: Msg) -> None:
        self._waiting.pop(msg.subject[len(self._inbox) + 1 :]).set_result(msg.data)


async def pipelined(works: Sequence[Callable[[], Awaitable[object]]], in_flight: int) -> float:
    """How many of these are done a second, so many of them at a time."""
    coming = iter(works)

    async def work() -> None:
        for one in coming:
            await one()

    since = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(work())
    return len(works) / (time.perf_counter() - since)


async def one_by_one(works: Sequence[Callable[[], Awaitable[object]]]) -> list[float]:
    """What each of them took, in milliseconds, fastest first."""
    took_ms: list[float] = []
    for one in works:
        since = time.perf_counter()
        await one()
        took_ms.append((time.perf_counter() - since) * 1000)
    return sorted(took_ms)
