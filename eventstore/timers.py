"""Deadlines as JetStream scheduled messages: set, clear, and take what has fallen due.

A schedule is a message on `timers.<task_id>.<kind>`; when its time comes the server replaces it by one on
`due.<task_id>.<kind>`, which is taken like work. One that fell due while the server was down fires when it starts. Late
is possible, and so is twice: whoever takes it compares `at` with what the task says.
"""

from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
from msgspec import Struct
from nats.aio.msg import Msg

from eventstore.connection import Connection, RefusedByServer
from eventstore.events import Owner, TaskId, Time
from eventstore.log import TASK_ID, LogUnavailable
from eventstore.pull import Delivery, Taker, WorkStream, checked_word
from eventstore.stream import NO_SUCH_STREAM

TimerKind = Literal["deadline", "retry"]


class Timer(Struct, frozen=True, kw_only=True):
    """Something is to happen to this task at this time. A task has at most one timer of each kind."""

    owner: Owner
    task_id: TaskId
    kind: TimerKind
    at: Time


class DueTimer(Delivery):
    """A timer whose time has come, ours for a while. Raises msgspec's error where the message is no timer."""

    def __init__(self, connection: Connection, msg: Msg, taken_at: float, lease: timedelta) -> None:
        super().__init__(connection, msg, taken_at, lease)
        self.timer = msgspec.json.decode(msg.data, type=Timer)

    async def done(self) -> bool:
        """It was seen to. False: too late or unconfirmed, it may come again."""
        return await self.finish()


class Timers:
    """All timers. One process sets, clears and takes them (the dispatcher); several do no harm."""

    def __init__(self, stream: WorkStream, ack_wait: timedelta) -> None:
        self._stream = stream
        self._taker = Taker(stream, "due", "due.>", ack_wait, DueTimer)

    @classmethod
    async def open(
        cls, connection: Connection, *, ack_wait: timedelta = timedelta(seconds=10), replicas: int = 1
    ) -> "Timers":
        """Create or update the stream. A due timer whose taker is silent for `ack_wait` goes to the next.

        Raises RefusedByServer, LogUnavailable.
        """
        # A stream with `discard: new` refuses schedules; one with limits retention would keep what has fired.
        config: dict[str, object] = {"subjects": ["timers.>", "due.>"], "discard": "old", "allow_msg_schedules": True}
        stream = WorkStream(connection, "TIMERS", config | {"num_replicas": replicas})
        await stream.ensure()
        return cls(stream, ack_wait)

    async def set(self, timer: Timer) -> None:
        """In place of the task's timer of this kind, if there is one. A time already past fires at once.

        Raises LogUnavailable, and may be set all the same.
        """
        headers = {
            "Nats-Schedule": f"@at {_rfc3339(timer.at)}",
            "Nats-Schedule-Target": _subject("due", timer.task_id, timer.kind),
        }
        subject = _subject("timers", timer.task_id, timer.kind)
        await self._stream.publish(subject, msgspec.json.encode(timer), headers)

    async def clear(self, task_id: TaskId, kind: TimerKind) -> None:
        """Take the timer back, if there is one; one that is already due may still be taken. Raises LogUnavailable."""
        try:
            await self._stream.connection.api("STREAM.PURGE.TIMERS", {"filter": _subject("timers", task_id, kind)})
        except RefusedByServer as error:
            if error.err_code != NO_SUCH_STREAM:
                raise LogUnavailable(str(error)) from error

    async def take(self, *, wait_s: float) -> DueTimer | None:
        """One that is due; None: none was in time. Raises LogUnavailable where the server is away."""
        return await self._taker.take(wait_s)

    async def close(self) -> None:
        """For when nobody takes any more."""
        await self._taker.close()


def _subject(first: Literal["timers", "due"], task_id: TaskId, kind: TimerKind) -> str:
    return f"{first}.{checked_word(TASK_ID, task_id)}.{kind}"


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
