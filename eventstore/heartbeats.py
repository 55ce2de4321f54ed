"""Heartbeats for leases, from a thread of their own; and the question whether a run is alive, which it answers."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVarTuple, Unpack

import structlog
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from eventstore.connection import Connection, NatsAddress
from eventstore.events import TaskId
from eventstore.log import TASK_ID, LogError, LogUnavailable
from eventstore.pull import PAUSE_S, checked_word
from eventstore.queue import Lease

log = structlog.stdlib.get_logger()

BEATS: Final = 5
"""Beats per lease: two may get lost before it is late."""
Said = TypeVarTuple("Said")


class HeartbeatThread:
    """Keeps leases alive, and answers for their runs, from a thread with a loop and a connection of its own.

    An agent that blocks its worker's loop loses nothing. A beat that the server did not confirm does not count.
    """

    def __init__(self, address: NatsAddress) -> None:
        self._opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            # In a copy of our context: it holds what the log lines of this process carry.
            target=contextvars.copy_context().run,
            args=(self._run, address),
            name="heartbeats",
            daemon=True,
        )
        self._attending: dict[Lease, asyncio.Task[None]] = {}

    @classmethod
    async def open(cls, address: NatsAddress) -> "HeartbeatThread":
        """Start the thread. Raises LogUnavailable, ServerTooOld."""
        beats = cls(address)
        beats._thread.start()
        await asyncio.wrap_future(beats._opened)
        return beats

    def keep(self, lease: Lease) -> None:
        """Beat for this lease until it is released, dropped, finished or late."""
        self._call(self._attend, lease, None)

    def hold(self, lease: Lease, task_id: TaskId, run: int) -> None:
        """As `keep`, and say that this run is alive to whoever asks."""
        self._call(self._attend, lease, alive_subject(task_id, run))

    def release(self, lease: Lease) -> None:
        """Beat no more for this lease, and answer no more for its run."""
        self._call(self._leave, lease)

    async def close(self) -> None:
        """End the thread."""
        self._call(self._opened.result()[1].set)
        await asyncio.to_thread(self._thread.join)

    def _call(self, call: Callable[[Unpack[Said]], None], *said: *Said) -> None:
        # The loop is closed where the thread has ended: no lease is kept any more, and each is late by its own clock.
        with suppress(RuntimeError):
            self._opened.result()[0].call_soon_threadsafe(call, *said)

    # From here on everything happens in the thread.

    def _run(self, address: NatsAddress) -> None:
        try:
            asyncio.run(self._live(address))
        except LogError as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    async def _live(self, address: NatsAddress) -> None:
        connection = await Connection.open(address, "tasktrail heartbeats")
        try:
            async with asyncio.TaskGroup() as self._group:
                self._connection = connection
                self._reconnected = asyncio.Event()
                connection.on_reconnected(self._on_reconnected)
                stopping = asyncio.Event()
                self._opened.set_result((asyncio.get_running_loop(), stopping))
                await stopping.wait()
                for lease in list(self._attending):
                    self._leave(lease)
        finally:
            await connection.close()

    def _attend(self, lease: Lease, question: str | None) -> None:
        self._leave(lease)
        self._attending[lease] = self._group.create_task(self._beat_safely(lease, question))

    def _leave(self, lease: Lease) -> None:
        if attending := self._attending.pop(lease, None):
            attending.cancel()

    def _on_reconnected(self) -> None:
        self._reconnected.set()
        self._reconnected = asyncio.Event()

    async def _beat_safely(self, lease: Lease, question: str | None) -> None:
        try:
            await self._beat(lease, question)
        except LogError as error:
            # Raised further it would end the thread, and all leases with it; so only this one will be late.
            log.warning("queue.no_beats", task_id=lease.item.task_id, error=str(error))

    async def _beat(self, lease: Lease, question: str | None) -> None:
        async def on_answer(msg: Msg) -> None:
            if not msg.headers:  # else nobody was there to hear it
                lease.confirmed(int(msg.subject.rpartition(".")[2]) / 1e9)

        async def on_question(msg: Msg) -> None:
            if lease.alive():
                await self._connection.publish(msg.reply)

        inbox = self._connection.new_inbox()
        listening = [await self._connection.subscribe(f"{inbox}.*", on_answer)]
        try:
            if question is not None:
                listening.append(await self._connection.subscribe(question, on_question))
            while await self._beat_once(lease, f"{inbox}.{time.monotonic_ns()}"):
                waking = asyncio.create_task(self._reconnected.wait())
                await asyncio.wait({waking}, timeout=lease.lease.total_seconds() / BEATS)
                waking.cancel()
        finally:
            for subscription in listening:
                await self._connection.unsubscribe(subscription)
            if self._attending.get(lease) is asyncio.current_task():
                del self._attending[lease]

    async def _beat_once(self, lease: Lease, answer_to: str) -> bool:
        # Not while disconnected: the client would keep the beat, and send it for whoever holds the item by then.
        if self._connection.connected:
            try:
                return await lease.beat(self._connection, answer_to)
            except LogUnavailable as error:
                log.warning("queue.beat_not_sent", task_id=lease.item.task_id, error=str(error))
        return lease.alive()


async def ask_alive(connection: Connection, task_id: TaskId, run: int, *, wait_s: float = 1.0) -> bool:
    """Whether some worker says that it holds this run. Raises LogUnavailable where nobody could hear the question.

    That nobody listens is no answer yet: after a restart of the server the holder may still be coming back.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            await connection.request(alive_subject(task_id, run), timeout_s=max(0.05, until - time.monotonic()))
        except LogUnavailable as error:
            if not isinstance(error.__cause__, NoRespondersError) and not connection.connected:
                raise
        else:
            return True
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(PAUSE_S)


def alive_subject(task_id: TaskId, run: int) -> str:
    """`alive.<task_id>.<run>`. Raises BadSubject."""
    return f"alive.{checked_word(TASK_ID, task_id)}.{run}"
