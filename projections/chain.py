"""The checkpoints in a log, told apart: those that go on from each other, and what anybody else may have put there."""

from eventstore.codec import Unreadable, decode_checkpoint
from eventstore.events import Checkpoint, LogRecord
from eventstore.log import Arrival
from projections.proof import is_signed

MAX_VERSION = 2**62
"""No version of ours comes near it; over 64 bits the one after it could not be written."""


class Chain:
    """What a signer goes on from, folded from the checkpoints in their order.

    Whoever may write to the log may write what looks like a checkpoint. Once there is one by our own key, only our own
    count; before that (a new key takes over) any that are signed and go on from each other.
    """

    def __init__(self, ours: str) -> None:
        self.last: Arrival | None = None
        self.previous: Arrival | None = None
        """The last one that can be read: versions and hashes go on from it."""
        self.mine: Arrival | None = None
        self._ours = ours
        self._covered = 0
        self._covered_by: dict[str, int] = {}

    @property
    def covered(self) -> int:
        """All up to here is signed."""
        return self._covered_by.get(self._ours, self._covered)

    @property
    def at(self) -> int:
        """The sequence of the last one, whoever wrote it; 0: there is none."""
        return 0 if self.last is None else self.last.sequence

    def begin_at(self, arrival: Arrival) -> None:
        """Where this one is our own, nothing before what it covers has to be looked at: a copy of an older one is
        followed by those that came after the older one, and they count."""
        said = _signed_in(arrival)
        if said is not None and said.key == self._ours:
            self._accept(arrival, said)

    def add(self, arrival: Arrival) -> None:
        """The next one."""
        self.last = arrival
        record = _read(arrival)
        if record is not None and 0 < record.version < MAX_VERSION:
            self.previous = arrival
        said = _signed_in(arrival)
        if said is not None and said.after == self._covered_by.get(said.key, self._covered):
            self._accept(arrival, said)

    def _accept(self, arrival: Arrival, said: Checkpoint) -> None:
        self._covered = self._covered_by[said.key] = said.sequence
        if said.key == self._ours:
            self.mine = arrival


def _read(arrival: Arrival) -> LogRecord | None:
    try:
        return decode_checkpoint(arrival.stored)
    except Unreadable:
        return None


def _signed_in(arrival: Arrival) -> Checkpoint | None:
    """What it says, where it is a checkpoint that can be right."""
    record = _read(arrival)
    if record is None or not isinstance(record.fact, Checkpoint):
        return None
    said = record.fact
    return said if 0 <= said.after <= said.sequence < arrival.sequence and is_signed(record, said) else None
