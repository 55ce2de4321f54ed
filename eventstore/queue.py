"""The work queue on JetStream: offer, take (a lease), finish, drop; and the word that a worker is lost.

An item is a hint, never the truth: it may come twice or get lost, and the dispatcher's sweep offers it again.
"""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from uuid import uuid4

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from eventstore.connection import Connection, RefusedByServer
from eventstore.events import Owner, TaskId
from eventstore.log import AGENT
from eventstore.pull import Delivery, Taker, WorkStream, checked_word
from eventstore.stream import NO_SUCH_STREAM

WORKER: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


class WorkItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task that may run. `lost_run`: the worker of this run is known to be dead, so the taker need not ask."""

    owner: Owner
    task_id: TaskId
    agent: str
    lost_run: int | None = None


class Lease(Delivery):
    """The right of one worker to run a task. Raises msgspec's error where the message is no item."""

    def __init__(self, connection: Connection, msg: Msg, taken_at: float, lease: timedelta) -> None:
        super().__init__(connection, msg, taken_at, lease)
        self.item = _decode_item(msg.data)


_decode_item = msgspec.json.Decoder(WorkItem).decode


class Queue:
    """The work queue, as its one publisher (the dispatcher) and its takers (the workers) see it."""

    def __init__(self, stream: WorkStream, lease: timedelta) -> None:
        self.lease = lease
        self._stream = stream
        self._takers: dict[str, Taker[Lease]] = {}

    @classmethod
    async def open(
        cls, connection: Connection, *, lease: timedelta = timedelta(seconds=10), replicas: int = 1
    ) -> "Queue":
        """Create or update the stream. Raises RefusedByServer, LogUnavailable."""
        stream = WorkStream(connection, "WORK", {"subjects": ["work.>"], "num_replicas": replicas})
        await stream.ensure()
        return cls(stream, lease)

    async def offer(self, item: WorkItem) -> None:
        """Put it on the queue; twice, it is there twice. Raises LogUnavailable: probably not there."""
        # A fresh id each time: an id seen before, within the window, is acknowledged as a duplicate, and lost.
        await self._stream.publish(work_subject(item.agent), msgspec.json.encode(item), {"Nats-Msg-Id": uuid4().hex})

    async def take(self, agent: str, *, wait_s: float) -> Lease | None:
        """One item of this agent, leased; None: none came in time. Raises LogUnavailable where the server is away."""
        taker = self._takers.get(agent)
        if taker is None:
            taker = Taker(self._stream, f"worker-{agent}", work_subject(agent), self.lease, Lease)
            self._takers[agent] = taker
        return await taker.take(wait_s)

    async def depth(self) -> dict[str, int]:
        """Unfinished items by agent, waiting and held. Raises LogUnavailable, RefusedByServer."""
        try:
            body = await self._stream.connection.api("STREAM.INFO.WORK", {"subjects_filter": "work.>"})
        except RefusedByServer as error:
            if error.err_code != NO_SUCH_STREAM:
                raise
            return {}  # the stream was deleted: everything in it is lost, which is just what is asked
        subjects = msgspec.convert(body, type=_Info).state.subjects or {}
        return {subject.removeprefix("work."): count for subject, count in subjects.items()}

    async def close(self) -> None:
        """For when nobody takes any more."""
        for taker in self._takers.values():
            await taker.close()


async def announce_lost(connection: Connection, worker: str) -> None:
    """Say that this worker process is dead. Unacknowledged: the lease is there for deaths that nobody heard of."""
    await connection.publish(f"workers.lost.{checked_word(WORKER, worker)}")


async def on_lost(connection: Connection, call: Callable[[str], None]) -> Subscription:
    """Have this called with the name of each worker that is announced dead."""

    async def on_message(msg: Msg) -> None:
        call(msg.subject.removeprefix("workers.lost."))

    return await connection.subscribe("workers.lost.*", on_message)


def work_subject(agent: str) -> str:
    """`work.<agent>`. Raises BadSubject."""
    return f"work.{checked_word(AGENT, agent)}"


class _State(Struct):
    subjects: dict[str, int] | None = None


class _Info(Struct):
    state: _State
