"""Event ids: where a reader is in the log, and whether it is this log. Pure."""

from msgspec import Struct

from eventstore.log import Arrival, Recorded

CHECK_BITS = 28
INDEX_BITS = 8


class BadCursor(Exception):
    """Not an event id, and not a sequence."""


class Cursor(Struct, frozen=True):
    """Where a reader is: after this sequence; `check` says of which record it was the id (None: a bare sequence)."""

    sequence: int
    check: int | None = None

    def is_of(self, sha256: str) -> bool:
        """Whether the record with this hash is the one whose id this is."""
        return self.check is not None and self.check >> INDEX_BITS == check_of(sha256)

    def genuine(self, recorded: Recorded | Arrival) -> bool:
        """Whether this is an id of that record; a cursor from another life of the log is not."""
        return self.is_of(recorded.sha256)


BEGINNING = Cursor(0)


def check_of(sha256: str) -> int:
    """28 bits of a record's hash."""
    return int(sha256[: CHECK_BITS // 4], 16)


def event_id(recorded: Recorded | Arrival, index: int = 0) -> str:
    """`<sequence>-<n>`: n is a check of the record's hash, the frame's index within the record in its low bits."""
    return f"{recorded.sequence}-{check_of(recorded.sha256) << INDEX_BITS | index}"


def cursor_of(text: str) -> Cursor:
    """An event id, or a bare sequence. Raises BadCursor."""
    sequence, dash, check = text.partition("-")
    digits = [sequence, check] if dash else [sequence]
    # 20: as CloudEvents write a sequence, with zeros before it.
    if not all(part.isascii() and part.isdigit() and len(part) <= 20 and int(part) < 10**19 for part in digits):
        raise BadCursor(f"not an event id: {text[:60]!r}")
    return Cursor(int(sequence), int(check) if dash else None)
