"""The log for auditors: where a reader begins, what of it is theirs, where they are; however it is written."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from datetime import datetime

from msgspec import Struct

from app.audit_filter import Agents, Wanted, is_wanted
from app.following import PAGE_BYTES
from app.problems import TooManyFeeds, UnknownCursor
from eventstore.cursor import Cursor, event_id
from eventstore.events import Owner
from eventstore.log import Arrival, EventLog, LogUnavailable, Replay
from projections.lines import whose

AT_ONCE = 256
MAX_SCANNED = 100_000
"""Records that are looked at for one page: where few of them are wanted, a page may be empty and not the last."""
MAX_OPENED_AT_ONCE = 8
"""Each asks the server several things first; hundreds at once, and it answers none of them in time."""
MAX_PAGES = 64
"""Pages read at once: they end by themselves, so the streams of others take nothing from them."""
PATIENCE_S = 5.0
WITHIN_S = 0.5


class Question(Struct, frozen=True, kw_only=True):
    """What a reader asks for. `only`: whose records they may see at all; None: everybody's."""

    wanted: Wanted
    only: Owner | None
    cursor: Cursor | None = None
    since: datetime | None = None
    limit: int | None = None
    follow: bool = False


class Reading:
    """One reader of the log, somewhere in it."""

    def __init__(
        self, replay: Replay, question: Question, agents: Agents, *, after: int, last: int, reset: bool
    ) -> None:
        self.last = last
        self.reset = reset
        self.position = after
        self._last: Arrival | None = None
        self.scanned = 0
        self.more = False
        self._replay = replay
        self._question = question
        self._everything = question.wanted.everything
        self._agents = agents
        self._left: int | None = question.limit
        self._exhausted = after >= last or replay.lag == 0

    @property
    def over(self) -> bool:
        """Nothing more is to come for who does not follow; or they have as many as they wanted."""
        return self._left == 0 or (self._exhausted and not self._question.follow)

    @property
    def cursor(self) -> str:
        """From where to go on: an event id, where the last record that was passed was given."""
        return str(self.position) if self._last is None else event_id(self._last)

    async def take(self, *, within_s: float, room_bytes: int | None = None) -> list[Arrival]:
        """The next ones that are wanted; none where none came in time, or none of those that came are wanted. With
        `room_bytes`, about so many, and at least one. Raises LogIsAnother, LogUnavailable."""
        found: list[Arrival] = []
        if self.over:
            return found
        # What was still to come may have left the log: that is heard of, but it wakes nobody.
        taken = await self._replay.take(
            AT_ONCE, within_s=within_s if self._question.follow else min(within_s, WITHIN_S)
        )
        for arrival in taken:
            if arrival.sequence > self.last and not self._question.follow:
                self._exhausted = True
                return found
            if self._left == 0 or (room_bytes is not None and room_bytes <= 0):
                self.more = True
                return found
            self.scanned += 1
            self.position, self._last = arrival.sequence, None
            if self._everything or await is_wanted(arrival, self._question.wanted, self._agents):
                found.append(arrival)
                self._last = arrival
                self._left = None if self._left is None else self._left - 1
                room_bytes = None if room_bytes is None else room_bytes - len(arrival.stored)
        self._look_ahead()
        return found

    def _look_ahead(self) -> None:
        """All that came was taken: is that all that there was to come?"""
        passed = min(self._replay.position, self.last)
        if passed > self.position:
            self.position, self._last = passed, None
        self._exhausted = self._replay.position >= self.last or self._replay.lag == 0
        if self._exhausted and self.position < self.last:
            self.position, self._last = self.last, None
        self.more = not self._exhausted


class Page(Struct, frozen=True):
    """Some records, and how to go on."""

    arrivals: list[Arrival]
    more: bool
    position: int
    cursor: str
    last: int


class _Places:
    """So many for all, and a quarter of them for one owner."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = max(1, most // 4)
        self.taken: Counter[Owner] = Counter()

    @contextmanager
    def place(self, owner: Owner) -> Generator[None]:
        if self.taken.total() >= self._most:
            raise TooManyFeeds(f"this process serves {self._most} at once")
        if self.taken[owner] >= self._most_of_one:
            raise TooManyFeeds(f"this process serves {self._most_of_one} of one owner at once")
        self.taken[owner] += 1
        try:
            yield
        finally:
            self.taken[owner] -= 1
            if not self.taken[owner]:
                del self.taken[owner]


class AuditFeeds:
    """The readers of one process: so many at once, each with a consumer of its own, at its own pace. One owner's are a
    quarter of them at most: nobody keeps all others out."""

    def __init__(self, event_log: EventLog, *, max_feeds: int) -> None:
        self._log = event_log
        self._agents = Agents(event_log)
        self._streams = _Places(max_feeds)
        self._pages = _Places(MAX_PAGES)
        self._opening = asyncio.Semaphore(MAX_OPENED_AT_ONCE)

    @property
    def open(self) -> int:
        """Streams that are read now."""
        return self._streams.taken.total()

    def place(self, owner: Owner) -> AbstractContextManager[None]:
        """For as long as somebody reads a stream. Raises TooManyFeeds."""
        return self._streams.place(owner)

    @asynccontextmanager
    async def reading(self, question: Question, *, resets: bool = False) -> AsyncGenerator[Reading]:
        """Begin to read. A cursor of another life of the log: from the beginning, where `resets` says that the reader
        can be told so. Raises UnknownCursor, LogUnavailable."""
        async with self._opening:
            replay, reading = await self._opened(question, resets=resets)
        try:
            yield reading
        finally:
            await replay.close()

    async def _opened(self, question: Question, *, resets: bool) -> tuple[Replay, Reading]:
        last = await self._log.last_sequence()
        after = 0 if question.since is None else min(await self._log.first_since(question.since) - 1, last)
        known = question.cursor is None or await self._is_known(question.cursor, last, question.only)
        if not known and not resets:
            raise UnknownCursor("the log holds no such record: read it from its beginning")
        if known and question.cursor is not None:
            after = max(after, question.cursor.sequence)
        replay = await self._log.replay(after=after, subjects=question.wanted.subjects)
        return replay, Reading(replay, question, self._agents, after=after, last=last, reset=not known)

    async def page(self, question: Question, owner: Owner) -> Page:
        """Up to `limit` records, and about PAGE_BYTES of them, for this owner. Raises UnknownCursor, LogUnavailable,
        TooManyFeeds."""
        found: list[Arrival] = []
        room_bytes = PAGE_BYTES
        with self._pages.place(owner):
            async with self.reading(question) as reading:
                heard_at = asyncio.get_running_loop().time()
                while not reading.over and room_bytes > 0 and reading.scanned < MAX_SCANNED:
                    before = reading.position
                    came = await reading.take(within_s=PATIENCE_S, room_bytes=room_bytes)
                    found += came
                    room_bytes -= sum(len(arrival.stored) for arrival in came)
                    now = asyncio.get_running_loop().time()
                    if reading.position > before:
                        heard_at = now
                    elif now - heard_at > PATIENCE_S:
                        raise LogUnavailable(f"nothing came within {PATIENCE_S:g} s")
                return Page(found, reading.more, reading.position, reading.cursor, reading.last)

    async def blob(self, record_id: str, only: Owner | None) -> bytes | None:
        """The blob that a record refers to; None: there is none, or it is another owner's. Raises LogUnavailable."""
        found = await self._log.blob_of(record_id)
        if found is None:
            return None
        record, content = found
        return content if _may_see(record, only) else None

    async def _is_known(self, cursor: Cursor, last: int, only: Owner | None) -> bool:
        """Whether a cursor is of this life of the log. A record that is gone (its task left, archived) can't tell."""
        if cursor.sequence > last:
            return False
        if cursor.check is None:
            return True
        record = await self._log.at(cursor.sequence)
        # Nobody was ever given the id of another owner's record.
        return record is None or (_may_see(record, only) and cursor.genuine(record))


def _may_see(record: Arrival, only: Owner | None) -> bool:
    if only is None:
        return True
    owned = whose(record.subject)
    return owned is not None and owned[0] == only
