"""Asking whoever carries the checkpoints to write one now: a question over NATS, and its answer."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from eventstore.connection import Connection
from eventstore.log import LogError, LogUnavailable

log = structlog.stdlib.get_logger()

SUBJECT = "checkpoint"
ANSWER_WITHIN_S = 30.0
"""A part of the log that was never signed is read first."""


class NobodySigns(LogUnavailable):
    """No process that has a key for checkpoints is there."""


class Signed(Struct, frozen=True, kw_only=True):
    """The checkpoint that is the last one now: where it is, up to where it covers the log (0 and 0: the log is empty),
    and whose it is."""

    sequence: int
    covers: int
    key: str


class _Answer(Struct, kw_only=True):
    signed: Signed | None = None
    error: str = ""


@asynccontextmanager
async def answering(connection: Connection, write: Callable[[], Awaitable[Signed]]) -> AsyncGenerator[None]:
    """While the context lasts, write a checkpoint for whoever asks. Raises LogUnavailable."""

    async def on_question(msg: Msg) -> None:
        try:
            answer = _Answer(signed=await write())
        except LogError as error:
            log.warning("checkpoint.not_written", error=str(error))
            answer = _Answer(error=str(error))
        if msg.reply:
            await connection.publish(msg.reply, msgspec.json.encode(answer))

    listening = await connection.subscribe(SUBJECT, on_question)
    try:
        yield
    finally:
        await connection.unsubscribe(listening)


class Signer:
    """Whoever carries the checkpoints of this deployment, to be asked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def sign(self) -> Signed:
        """Have all that is in the log signed now. Raises LogUnavailable, NobodySigns."""
        try:
            said = await self._connection.request(SUBJECT, timeout_s=ANSWER_WITHIN_S)
        except LogUnavailable as error:
            if isinstance(error.__cause__, NoRespondersError):
                raise NobodySigns("no projector of this deployment has a key (--audit-key)") from error
            raise
        answer = msgspec.json.decode(said.data, type=_Answer)
        if answer.signed is None:
            raise LogUnavailable(f"no checkpoint was written: {answer.error}")
        return answer.signed
