"""The port `EventLog`: append, read, last, tail; what it gives (`Recorded`) and what it raises.

LogError
├── WrongExpectedSequence   someone else appended first: read on, decide again
├── OutcomeUnknown          the append may or may not have happened; repeating the request is safe
├── LogUnavailable          nothing was written: the log can't be reached
│   └── BlobDamaged         what is there is not what was stored: a replica is behind, or somebody changed it
├── LogFull                 nothing was written: the log has no room
├── LogIsAnother            it is not the one that was followed so far: what was learnt from it is void
├── TooLarge                nothing was written: no record, or no blob, may be as large as this
└── BadSubject              a word that may not become part of a subject
"""

import base64
import hashlib
import re
import zlib
from collections.abc import AsyncIterable, Callable, Collection
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from eventstore.events import BlobReference, LogRecord, Owner, Record, SessionRecord, TaskId

PARTITIONS = 16
CHECKPOINTS = "checkpoints"
"""The subject of what is said of the log itself."""
OWNER = re.compile(r"[a-z0-9_-]{1,64}")
OWNER_WORD = re.compile(r"[a-z0-9_-]{1,240}")
"""An owner as a subject's word: what `owner_word` makes."""
AGENT = re.compile(r"[a-z0-9_-]{1,64}")
SESSION_WORD = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""A session as a subject's word: what `session_word` makes."""
MAX_SESSION_ID = 2_048
"""Bytes of a session id."""
TASK_ID = re.compile(r"task_[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class LogError(Exception):
    """The log could not do what was asked."""


class WrongExpectedSequence(LogError):
    """The task's last sequence is not the expected one."""

    def __init__(self, subject: str, expected: int, found: int) -> None:
        super().__init__(f"{subject}: expected last sequence {expected}, found {found}")
        self.subject, self.expected, self.found = subject, expected, found


class OutcomeUnknown(LogError):
    """No acknowledgement came in time; the fact may be in the log, now or later. `task_id`: of which task."""

    def __init__(self, message: str, *, task_id: TaskId | None = None) -> None:
        super().__init__(message)
        self.task_id = task_id


class LogUnavailable(LogError):
    """The log can't be reached; nothing was written."""


class BlobDamaged(LogUnavailable):
    """The blob's bytes are not those that were stored: a replica is behind, or somebody changed it."""


class LogFull(LogError):
    """The log has no room for this; nothing was written."""


class LogIsAnother(LogError):
    """The log is not the one that was followed so far: what was learnt from it is void."""


class TooLarge(LogError):
    """No record (or blob) may be as large as this; nothing was written."""


class BadSubject(LogError):
    """This word may not become part of a subject."""


def owner_word(name: str) -> Owner:
    """The subject's word for a token's owner: itself, or `x-` and its base32 (JWT subjects hold dots)."""
    if OWNER.fullmatch(name) and not name.startswith("x-"):
        return Owner(name)
    word = "x-" + base64.b32encode(name.encode()).decode().rstrip("=").lower()
    if not name or len(word) > 240:
        raise BadSubject(f"an owner has 1 to 148 bytes, this one {len(name.encode())}")
    return Owner(word)


def owner_named(text: str) -> Owner:
    """Whom a person means, by a name or by the word that our lists show. A token's subject is never read like this: it
    could pass for another's word. Raises BadSubject."""
    if text.startswith("x-") and OWNER_WORD.fullmatch(text):
        with suppress(ValueError):
            encoded = text[2:].upper()
            name = base64.b32decode(encoded + "=" * (-len(encoded) % 8)).decode()
            if owner_word(name) == text:
                return Owner(text)
    return owner_word(text)


@lru_cache(maxsize=4096)
def task_subject(owner: Owner, task_id: TaskId) -> str:
    """`tasks.<partition>.<owner>.<task_id>`: the one place that makes subjects. (A command asks for the same one
    several times.)"""
    return _task_subject(_checked(owner), task_id)


def _task_subject(owner: str, task_id: TaskId) -> str:
    if not TASK_ID.fullmatch(task_id):
        raise BadSubject(f"not a task id: {task_id[:80]!r}")
    return f"tasks.{zlib.crc32(task_id.encode()) % PARTITIONS}.{owner}.{task_id}"


def task_of_subject(subject: str) -> tuple[Owner, TaskId] | None:
    """Owner and task id of a task's subject; None for the log's other subjects (sessions, checkpoints)."""
    words = subject.split(".")
    if len(words) != 4 or words[0] != "tasks":
        return None
    return Owner(words[2]), TaskId(words[3])


def session_word(session_id: str) -> str:
    """The subject's word for a session: its id, or `x-` and the id's SHA-256 where it may hold anything."""
    if SESSION_WORD.fullmatch(session_id) and not session_id.startswith("x-"):
        return session_id
    try:
        said = session_id.encode()
    except UnicodeEncodeError as error:
        raise BadSubject("a session id is text in UTF-8") from error
    if not 1 <= len(said) <= MAX_SESSION_ID:
        raise BadSubject(f"a session id has 1 to {MAX_SESSION_ID:,} bytes, this one {len(said):,}")
    return f"x-{hashlib.sha256(said).hexdigest()}"


def session_subject(owner: Owner, session_id: str) -> str:
    """`sessions.<owner>.<word>`."""
    return f"sessions.{_checked(owner)}.{session_word(session_id)}"


def session_of_subject(subject: str) -> tuple[Owner, str] | None:
    """Owner and word of a session's subject; None for the log's other subjects."""
    words = subject.split(".")
    if len(words) != 3 or words[0] != "sessions":
        return None
    return (Owner(words[1]), words[2]) if SESSION_WORD.fullmatch(words[2]) else None


def subjects_of(owner: Owner) -> tuple[str, ...]:
    """All that is said of one owner's tasks and sessions, as filters."""
    return f"tasks.*.{_checked(owner)}.>", f"sessions.{owner}.>"


def subjects_about(owners: Collection[Owner], tasks: Collection[TaskId]) -> tuple[str, ...]:
    """Filters: what is said of these owners, or of these tasks of theirs. Where no owner is named all are meant, and
    where several are, a filter for tasks does not tell them apart."""
    if not tasks:
        return tuple(subject for owner in sorted(owners) for subject in subjects_of(owner))
    whose = _checked(next(iter(owners))) if len(owners) == 1 else "*"
    return tuple(_task_subject(whose, task_id) for task_id in sorted(tasks))


@lru_cache(maxsize=1024)
def _checked(owner: Owner) -> Owner:
    if not OWNER_WORD.fullmatch(owner):
        raise BadSubject(f"not an owner: {owner[:80]!r}")
    return owner


class Recorded(Struct, kw_only=True, eq=False, gc=False):
    """A record that is in the log: with its sequence, whose task it is, and its stored bytes.

    `imported`: it came from another log, by an import.
    """

    sequence: int
    owner: Owner
    task_id: TaskId
    record: Record
    stored: bytes
    imported: bool = False
    _sha256: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the stored bytes: what the task's next record carries as `previous`."""
        # (functools.cached_property takes a lock before Python 3.12: a part of every fold.)
        if not self._sha256:
            self._sha256 = hashlib.sha256(self.stored).hexdigest()
        return self._sha256

    def __repr__(self) -> str:
        return f"Recorded({self.sequence}, {self.task_id} v{self.record.version}, {self.record.fact!r})"


class SessionRecorded(Struct, frozen=True, kw_only=True):
    """A record of a session that is in the log. `word` is the session's in the subject."""

    sequence: int
    owner: Owner
    word: str
    record: SessionRecord
    sha256: str


class Arrival(Struct, eq=False, gc=False):
    """A message of a stream, not yet decoded (most that a tail sees are of tasks that nobody here attends to).

    `deleted`: it is a key-value bucket's mark of a deletion. `imported`: it came from another log, by an import.
    """

    sequence: int
    subject: str
    stored: bytes
    deleted: bool = False
    imported: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the stored bytes."""
        return hashlib.sha256(self.stored).hexdigest()


class Tail(Protocol):
    """The one live reader of a process: every message of the stream once, in order, without holes."""

    @property
    def position(self) -> int:
        """The last sequence delivered (or skipped because the log no longer has it)."""
        ...

    @property
    def proven(self) -> bool:
        """Whether it reached, within the last second, what the leader said a second before that."""
        ...

    @property
    def age_s(self) -> float:
        """Seconds since it was last proven."""
        ...

    @property
    def lag(self) -> int:
        """How many records the leader has that were not delivered yet, as last heard."""
        ...

    async def reach(self, sequence: int) -> None:
        """Return once `position` is at least `sequence`."""
        ...

    async def catch_up(self) -> None:
        """Ask the leader for its last sequence (callers that ask together share one question) and reach it.

        Raises LogUnavailable where no leader answers.
        """
        ...

    async def close(self) -> None: ...


class Replay(Protocol):
    """The log from a sequence on, at the pace of its one taker; `close` last."""

    @property
    def position(self) -> int:
        """All up to here was taken, or is not to come: not in the log any more, or not asked for."""
        ...

    @property
    def lag(self) -> int:
        """Records that are still to be taken, as last heard."""
        ...

    async def take(self, at_most: int, *, within_s: float, linger_s: float = 0.0) -> list[Arrival]:
        """The next ones in order, as many as there are; none where none came in time. Where there are fewer than
        `at_most`, it waits for more for `linger_s`. Raises LogIsAnother."""
        ...

    async def close(self) -> None: ...


OnArrival = Callable[[Arrival], None]
OnReset = Callable[[], None]
OnEnd = Callable[[Recorded | LogError], None]


class Blobs(Protocol):
    """What is too big for a message, by name."""

    async def put(self, name: str, content: bytes, *, subject: str = "", expected: int = 0) -> None:
        """Store; storing the same again changes nothing. `subject` and `expected` say of which append this is the
        blob, so that one whose append never came can be told. Raises LogUnavailable, TooLarge."""
        ...

    async def put_pieces(
        self, name: str, pieces: AsyncIterable[bytes], *, subject: str = "", expected: int = 0
    ) -> None:
        """As `put`, piece by piece, each small enough for a message; of a new name. Raises LogUnavailable, TooLarge."""
        ...

    async def get(self, name: str) -> bytes | None:
        """The bytes; None if there are none by this name. Raises LogUnavailable, BlobDamaged."""
        ...


class EventLog(Protocol):
    """The record of all facts."""

    @property
    def blobs(self) -> Blobs: ...

    @property
    def fullness(self) -> float:
        """How much of the log's room is taken, 0 to 1, as last heard."""
        ...

    def begin(self, owner: Owner, task_id: TaskId, record: Record, expected: int, on_end: OnEnd) -> bool:
        """Begin to `append`, where that can be done at once. `on_end` is told how it ended, later and once, whatever
        becomes of whoever began it: the record as it is in the log, or what `append` would raise.

        False: nothing was begun, for something has to be waited for. Raises BadSubject, Unreadable.
        """
        ...

    async def append(self, owner: Owner, task_id: TaskId, record: Record, expected: int) -> Recorded:
        """Add one record, if the task's last sequence is `expected` (0: it has none). What is returned is in the log.

        Raises WrongExpectedSequence, OutcomeUnknown, LogUnavailable, LogFull.
        """
        ...

    async def append_session(
        self, owner: Owner, session_id: str, record: SessionRecord, expected: int
    ) -> SessionRecorded:
        """Add one record to a session, if its last sequence is `expected` (0: it has none). Raises as `append`."""
        ...

    async def read_session(self, owner: Owner, session_id: str, *, after: int = 0) -> list[SessionRecorded]:
        """All that the leader has of a session after a sequence, in order. Raises LogUnavailable."""
        ...

    async def append_checkpoint(self, record: LogRecord, expected: int) -> Arrival:
        """Add a checkpoint, if the last one's sequence is `expected` (0: there is none). Raises as `append`."""
        ...

    async def last_checkpoint(self) -> Arrival | None:
        """The leader's word for the last checkpoint. Raises LogUnavailable."""
        ...

    async def read(
        self, owner: Owner, task_id: TaskId, *, after: int = 0, limit: int | None = None, max_bytes: int | None = None
    ) -> list[Recorded]:
        """The task's records after a sequence, in order: at most `limit`, and about `max_bytes`, but at least one.

        Raises LogUnavailable.
        """
        ...

    async def last(self, owner: Owner, task_id: TaskId) -> int:
        """The leader's word for the task's last sequence; 0: there is no such task. Raises LogUnavailable."""
        ...

    async def latest(self, owner: Owner, task_id: TaskId) -> Recorded | None:
        """The leader's word for the task's last record; None: there is no such task. Raises LogUnavailable."""
        ...

    async def last_sequence(self) -> int:
        """The leader's word for the log's last sequence. Raises LogUnavailable."""
        ...

    async def at(self, sequence: int) -> Arrival | None:
        """From the leader: the record with this sequence, whosever it is; None: there is none.

        Raises LogUnavailable.
        """
        ...

    async def first_since(self, moment: datetime) -> int:
        """The sequence of the first record that came into the log at or after a moment, by its server's clock; where
        there is none yet, the next. Raises LogUnavailable."""
        ...

    async def blob_of(self, name: str) -> tuple[Arrival, bytes] | None:
        """A record that refers to a blob, and the blob; None: there is no such record. Raises LogUnavailable."""
        ...

    async def sweep_blobs(self) -> int:
        """Remove the blobs whose fact never came; how many there were. Raises LogUnavailable."""
        ...

    async def replay(self, *, after: int, owner: Owner | None = None, subjects: tuple[str, ...] = ()) -> Replay:
        """All that comes after a sequence; of one owner only, or of these subjects (`subjects_about`), where they are
        named. Raises LogUnavailable, BadSubject."""
        ...

    async def tail(self, on_arrival: OnArrival, on_reset: OnReset, *, after: int | None = None) -> Tail:
        """Follow the whole log from `after` on (None: from what is last now).

        `on_arrival` is called for each message, synchronously, in order; `on_reset` when the log turns out to be
        another than the one followed so far (a restored older directory): what was learnt from it is void.
        """
        ...


def blob_reference(name: str, content: bytes, fields: tuple[str, ...]) -> BlobReference:
    """The reference to a blob that holds these fields."""
    return BlobReference(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), fields=fields)
