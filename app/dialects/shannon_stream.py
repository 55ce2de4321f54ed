"""A task as Shannon's streams tell it: where a reader begins, what passes its filter, how SSE and a socket say it."""

import re
from collections.abc import Callable
from functools import lru_cache

import msgspec
from msgspec import Struct

from app.attached import Attached
from app.dialects.shannon_events import events_by
from app.dialects.shannon_frames import Event, raw, sse_frame, wanted
from app.feed import PING, RETRY
from app.following import history_page
from app.tasks import Tasks
from app.telling import Start
from eventstore.cursor import BEGINNING, INDEX_BITS, Cursor
from eventstore.events import Ending, TaskId, Usage
from eventstore.log import Recorded
from projections.task import Task

POSITION = re.compile(r"([0-9]{1,18})(?:-(-?[0-9]{1,18}))?")
PING_S = 10.0
SHARED = 64
"""Facts of which the frames are kept: the readers of one task come to a new one at about the same time."""


class Position(Struct, frozen=True):
    """After which event a reader goes on: by an id (`cursor`, and the event's place within that fact), or by `seq`."""

    cursor: Cursor = BEGINNING
    index: int = -1
    seq: int = 0

    def is_past(self, recorded: Recorded, index: int) -> bool:
        """Whether its reader has this event of a fact."""
        before = recorded.sequence < self.cursor.sequence
        within = recorded.sequence == self.cursor.sequence and index <= self.index
        return before or within or recorded.record.version + index <= self.seq


def position_of(text: str) -> Position | None:
    """An event's id, or its `seq`; None: neither. An id that is too small to have been ours is a place in the log."""
    found = POSITION.fullmatch(text)
    if found is None:
        return None
    if found[2] is None:
        return Position(seq=int(found[1]))
    check = max(0, int(found[2]))
    bare = check >> INDEX_BITS == 0
    return Position(cursor=Cursor(int(found[1]), None if bare else check), index=check & ((1 << INDEX_BITS) - 1))


class Voice(Struct, frozen=True):
    """What says an event: a stream's frame, or a socket's message."""

    says: Callable[[Event], bytes]
    connected: Callable[[TaskId], bytes]
    again: Callable[[TaskId], bytes]
    ping: bytes


class ShannonCircle(Struct, frozen=True):
    """Those who hear the same events by the same voice. The ending's last is said to all, whatever their filter."""

    types: frozenset[str]
    voice: Voice

    def said(self, recorded: Recorded, task: Task) -> list[bytes]:
        """The events that they want."""
        told = _told(recorded, task.agent, _usage(recorded, task), self.voice)
        return [piece for event, piece in told if wanted(event, self.types) or event.type == "STREAM_END"]


def _reset(task_id: TaskId) -> bytes:
    message = "unknown last_event_id: the story begins again"
    return msgspec.json.encode({"workflow_id": task_id, "type": "reset", "message": message})


SSE = Voice(
    says=sse_frame,
    connected=lambda task_id: b": connected to workflow %b\n\n%b" % (task_id.encode(), RETRY),
    again=lambda task_id: b"event: reset\ndata: %b\n\n" % _reset(task_id),
    ping=PING,
)
SOCKET = Voice(says=raw, connected=lambda _: b"", again=_reset, ping=b"")


class ShannonWords:
    """One reader's stream. After any end the last that it hears is STREAM_END, whatever its filter and its position."""

    ping_s = PING_S

    def __init__(self, tasks: Tasks, task_id: TaskId, position: Position, types: frozenset[str], voice: Voice) -> None:
        self._tasks = tasks
        self._task_id = task_id
        self._position = position
        self._types = types
        self._voice = voice
        self._at_end = False
        self.words = ShannonCircle(types, voice)
        self.opening = voice.connected(task_id)
        self.ping = voice.ping

    async def start(self, attached: Attached) -> Start:
        """After the last fact that it has, as far as that is known; `pieces` passes over what it has. Of a task that
        has ended nothing can be lost: whoever is past its end is told so."""
        position, task = self._position, attached.task
        if position.seq > task.version and not task.ended:
            await self._tasks.tail.catch_up()  # another process may have shown it more
            task = attached.task
            if position.seq > task.version and not task.ended:
                return Start(1, lambda _: False)  # of another life of the log
        if position.seq:
            known = (one.sequence for one in attached.recent if one.record.version <= position.seq)
            return Start(max(known, default=0))
        if position.cursor.check is not None:
            return Start(position.cursor.sequence, position.cursor.genuine)
        after = position.cursor.sequence
        return Start(min(after, task.sequence) if task.ended else after)

    def pieces(self, page: list[Recorded] | None, task: Task) -> list[bytes]:
        """The events that it wants and has not."""
        if page is None:
            self._position = Position()
            return [self._voice.again(self._task_id)]
        return [piece for recorded in page for piece in self._of(recorded, task)]

    async def closing(self, attached: Attached) -> list[bytes]:
        """What is left of the ending, for whoever began at it or past it."""
        if self._at_end:
            return []
        task = attached.task
        last = await history_page(self._tasks.log, attached, task.sequence - 1, task.sequence, limit=1)
        return self.pieces(last, task)

    def _of(self, recorded: Recorded, task: Task) -> list[bytes]:
        self._at_end = self._at_end or isinstance(recorded.record.fact, Ending)
        said: list[bytes] = []
        for index, (event, piece) in enumerate(_told(recorded, task.agent, _usage(recorded, task), self._voice)):
            passes = wanted(event, self._types) and not self._position.is_past(recorded, index)
            if passes or event.type == "STREAM_END":
                said.append(piece)
        return said


def _usage(recorded: Recorded, task: Task) -> Usage | None:
    return task.usage if isinstance(recorded.record.fact, Ending) else None


@lru_cache(maxsize=SHARED)
def _told(recorded: Recorded, agent: str, usage: Usage | None, voice: Voice) -> tuple[tuple[Event, bytes], ...]:
    return tuple((event, voice.says(event)) for event in events_by(recorded, agent, usage))
