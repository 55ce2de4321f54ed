"""How a consumer's messages come to its tail: pushed as fast as they can be sent, or pulled as they are asked for."""

import itertools

import msgspec
import structlog

from eventstore.client import Delivery
from eventstore.connection import Connection

log = structlog.stdlib.get_logger()

HEARTBEAT_S = 0.5
NANOSECONDS = 1_000_000_000
AT_ONCE = 2_000
AT_ONCE_BYTES = 2 * 1024 * 1024
"""What one request asks for; two may be under way. (A message has 1 MiB at most: one always fits.)"""
ASKED_FOR_S = 30.0


class Pushed:
    """The server sends what there is; flow control bounds what is under way, so whoever listens must keep up."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answers: list[str] = []

    @property
    def expects(self) -> bool:
        """Whether silence means that something is wrong."""
        return True

    @property
    def wants(self) -> bool:
        """Whether there is something to be said: the server waits to be told to go on."""
        return bool(self._answers)

    def begin(self, inbox: str) -> tuple[str, dict[str, object]]:
        """For a new consumer: the subject to listen on, and what its configuration says of this."""
        self._answers.clear()
        how: dict[str, object] = {
            "deliver_subject": inbox,
            "idle_heartbeat": int(HEARTBEAT_S * NANOSECONDS),
            "flow_control": True,
        }
        return inbox, how

    async def go_on(self, api_call: str) -> None:
        """Answer flow control. Raises LogUnavailable."""
        del api_call
        while self._answers:
            await self._connection.publish(self._answers.pop(0))

    def took(self) -> None:
        """A message came."""

    def heard(self, said: Delivery) -> bool:
        """What the server says beside the messages. False: the consumer can't be gone on with."""
        if answer := said.reply or said.headers.get("Nats-Consumer-Stalled"):
            self._answers.append(answer)
        return True


class Pulled:
    """The server sends what was asked for, and more is asked for as long as there is `room`: a reader at its own pace,
    and never more of the log in memory than two requests bring."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = ""
        self._numbers = itertools.count()
        self._asked: dict[str, int] = {}
        self._under_way = 0
        self.room = True

    @property
    def expects(self) -> bool:
        """Whether silence means that something is wrong: nothing comes, not even a heartbeat, where nobody asks."""
        return bool(self._asked)

    @property
    def wants(self) -> bool:
        """Whether there is something to ask for."""
        return self.room and self._under_way <= AT_ONCE // 2 and len(self._asked) < 2

    def begin(self, inbox: str) -> tuple[str, dict[str, object]]:
        """For a new consumer: the subject to listen on, and what its configuration says of this."""
        self._inbox = inbox
        self._asked.clear()
        self._under_way = 0
        return f"{inbox}.*", {"max_waiting": 8}

    async def go_on(self, api_call: str) -> None:
        """Ask for more, where there is room and not enough is under way. Raises LogUnavailable."""
        while self.wants:
            number = str(next(self._numbers))
            self._asked[number] = AT_ONCE
            self._under_way += AT_ONCE
            wanted = {
                "batch": AT_ONCE,
                "max_bytes": AT_ONCE_BYTES,
                "expires": int(ASKED_FOR_S * NANOSECONDS),
                "idle_heartbeat": int(HEARTBEAT_S * NANOSECONDS),
            }
            await self._connection.publish(api_call, msgspec.json.encode(wanted), reply=f"{self._inbox}.{number}")

    def took(self) -> None:
        """A message came: it is of the oldest request."""
        number = next(iter(self._asked), None)
        if number is None:
            return
        self._under_way -= 1
        self._asked[number] -= 1
        if self._asked[number] == 0:
            del self._asked[number]

    def heard(self, said: Delivery) -> bool:
        """What the server says beside the messages. False: the consumer can't be gone on with."""
        headers = said.headers
        status, why = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":
            return True
        # A request has come to its end: its time is over, or its bytes are used up; otherwise the consumer is gone.
        self._under_way -= self._asked.pop(said.subject.rpartition(".")[2], 0)
        if status in ("404", "408") or (status == "409" and ("MaxBytes" in why or "Batch Completed" in why)):
            return True
        log.debug("tail.pull_ended", status=status, said=why)
        return False
