"""Verifies the log, record by record: the chain of each task, the sequence of all, and what was signed of them. Pure.

Whoever changes a record breaks the chain where the next one says what the hash was; a chain's last record, and all that
was taken away, are what the signed checkpoints are for.
"""

import hashlib
from collections import deque
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from eventstore.codec import SESSION_TAGS, TAGS, Unreadable, decode_checkpoint
from eventstore.events import BlobReference, Checkpoint, Ending, FileReference, LogRecord, Time
from eventstore.log import CHECKPOINTS, Arrival
from projections.lines import whose
from projections.proof import LEAF_BYTES, MAX_LEAVES, NO_LEAF, Leaves, is_signed, leaf_of

MAX_FAULTS = 1_000
"""So many are named; all are counted."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Fault(Struct, frozen=True, kw_only=True):
    """What is wrong with a record: at `sequence`, about `subject` (empty: nobody can know)."""

    sequence: int
    subject: str
    what: str

    def __str__(self) -> str:
        about = whose(self.subject)
        task = f", {about[1]}" if about and about[1] else f", {self.subject}" if self.subject else ""
        return f"record {self.sequence}{task}: {self.what}"


class _Fact(Struct, frozen=True):
    type: str = ""
    files: tuple[FileReference, ...] = ()


class _Head(Struct, frozen=True):
    """What of a record is looked at."""

    version: int
    at: Time
    previous: str
    record_id: str = ""
    blob: BlobReference | None = None
    fact: _Fact = _Fact()


class _Link(Struct, frozen=True):
    """The last record of a chain so far."""

    version: int
    sha256: str
    sequence: int
    at: datetime


ENDINGS = frozenset(str(kind.__struct_config__.tag) for kind in Ending.__args__)
_head = msgspec.json.Decoder(_Head)


class Wanted(Struct, frozen=True):
    """A blob that a record refers to, to be looked at by whoever can fetch it."""

    arrival: Arrival
    name: str
    sha256: str


class Covered(Struct, frozen=True, kw_only=True):
    """How far checkpoints reach: all up to `sequence` is signed by one of `keys`, `checkpoints` of them."""

    sequence: int
    checkpoints: int
    keys: frozenset[str]


class Verification:
    """Takes the log's records in order. `whole`: all of them are shown (else some are, of whole chains: one task's, or
    one owner's), so that a hole is one. `keys`: whose signatures count; without any, the log's own are trusted."""

    def __init__(self, *, whole: bool, keys: frozenset[str] = frozenset()) -> None:
        self.faults: list[Fault] = []
        self.fault_count = 0
        self.records = 0
        self.newer = 0
        self.last_sequence = 0
        self._whole = whole
        self._keys = keys
        self._links: dict[str, _Link] = {}
        self._ended: set[bytes] = set()
        self._leaves = Leaves(0)
        self._some: deque[tuple[int, bytes]] = deque()
        self._covered = 0
        self._checkpoints = 0
        self._seen_keys: set[str] = set()
        self._strange_key = ""

    @property
    def covered(self) -> Covered:
        """What is signed."""
        return Covered(sequence=self._covered, checkpoints=self._checkpoints, keys=frozenset(self._seen_keys))

    def take(self, arrival: Arrival) -> list[Wanted]:
        """The next record; the blobs that it refers to: its own first, then those of the files of its task."""
        if arrival.sequence <= self.last_sequence:
            self._say(arrival.sequence, arrival.subject, f"out of order: it comes after {self.last_sequence}")
            return []
        if self._whole and arrival.sequence != self.last_sequence + 1:
            self._say_missing(self.last_sequence + 1, arrival.sequence - 1)
        self.last_sequence = arrival.sequence
        self.records += 1
        digest = hashlib.sha256(arrival.stored)
        if self._whole:
            if arrival.sequence > self._leaves.sequence + MAX_LEAVES:
                # So much is missing that it is not noted place by place.
                self._leaves = Leaves(arrival.sequence - 1)
            self._leaves.add(arrival.subject, arrival.sequence, digest.digest())
        elif arrival.subject != CHECKPOINTS:
            self._some.append((arrival.sequence, leaf_of(arrival.subject, digest.digest())))
        try:
            head = _head.decode(arrival.stored)
        except (msgspec.DecodeError, RecursionError):
            self._say(arrival.sequence, arrival.subject, "it can't be read: it is no record of ours")
            before = self._links.get(arrival.subject)
            version = before.version + 1 if before else 1
            at = before.at if before else EPOCH
            self._links[arrival.subject] = _Link(version, digest.hexdigest(), arrival.sequence, at)
            return []
        self._link(arrival, head, digest.hexdigest())
        known = SESSION_TAGS if arrival.subject.startswith("sessions.") else TAGS
        if head.fact.type not in known and arrival.subject != CHECKPOINTS:
            self.newer += 1
        own = [] if head.blob is None else [Wanted(arrival, head.blob.name, head.blob.sha256)]
        return own + [Wanted(arrival, file.blob, file.sha256) for file in head.fact.files]

    def checkpoint(self, arrival: Arrival, leaves: bytes | None) -> None:
        """The checkpoint just taken, with its leaves where they were to be had: judge what it says of what was seen."""
        if arrival.sequence != self.last_sequence:
            return  # it was out of order, and said to be
        try:
            record = decode_checkpoint(arrival.stored)
        except Unreadable:
            record = None
        if record is None or not isinstance(record.fact, Checkpoint):
            self._say(arrival.sequence, arrival.subject, "it is no checkpoint that can be read")
            return
        said = record.fact
        if not self._is_trusted(arrival, record, said):
            return
        if not (said.after == self._covered <= said.sequence < arrival.sequence):
            what = f"it covers {said.after + 1} to {said.sequence}, where {self._covered + 1} was to come"
            if self._strange_key:
                what += (
                    f"; those before are signed by {self._strange_key}: where the key was changed, give that one too"
                )
            self._say(arrival.sequence, arrival.subject, what)
            if self._whole and said.after == self._covered == self._leaves.after and leaves is not None:
                self._compare(arrival, said, self._leaves.up_to(said.sequence), leaves)
            return
        if self._whole:
            self._judge(arrival, said, leaves)
        else:
            self._judge_some(arrival, said, leaves)
        self._covered = said.sequence
        self._checkpoints += 1
        self._seen_keys.add(said.key)
        self._strange_key = ""

    def blob(self, wanted: Wanted, content: bytes | None) -> None:
        """What was found by a record's reference."""
        where = wanted.arrival.sequence, wanted.arrival.subject
        if content is None:
            self._say(*where, f"its blob {wanted.name} is missing")
        elif hashlib.sha256(content).hexdigest() != wanted.sha256:
            self._say(*where, f"its blob {wanted.name} was changed")

    def finish(self, last_sequence: int) -> None:
        """There are no more; the log says that its last sequence is this one."""
        if self._whole and last_sequence > self.last_sequence:
            self._say_missing(self.last_sequence + 1, last_sequence)
        if self._keys and self.records and not self._checkpoints:
            self._say(self.last_sequence, "", "nothing up to here is signed by a key that was given")

    def held(self, arrival: Arrival, found: Arrival | None) -> None:
        """A checkpoint that someone else holds, and what the log has at its sequence."""
        if found is None:
            self._say(arrival.sequence, arrival.subject, "the checkpoint that you hold is missing: the log was cut")
        elif (found.subject, found.stored) != (arrival.subject, arrival.stored):
            self._say(arrival.sequence, found.subject, "it is not the checkpoint that you hold: the log is another one")

    def _link(self, arrival: Arrival, head: _Head, sha256: str) -> None:
        where = arrival.sequence, arrival.subject
        before = self._links.get(arrival.subject)
        if before is None:
            if _brief(arrival.subject) in self._ended:
                self._say(*where, "it comes after its task's end")
            elif head.version != 1:
                self._say(*where, f"it is version {head.version}, and the {head.version - 1} before it are missing")
        elif head.version != before.version + 1:
            self._say(*where, _jump(before, head))
        elif head.previous != before.sha256:
            self._say(
                before.sequence,
                arrival.subject,
                f"version {before.version} was changed: version {head.version} (record {arrival.sequence}) has another"
                " hash of it",
            )
        elif head.at < before.at:
            self._say(*where, "its time is before that of its task's record before it")
        if head.version == 1 and head.previous:
            self._say(*where, "it is the first, and says that there was one before it")
        if head.fact.type in ENDINGS:
            self._links.pop(arrival.subject, None)
            self._ended.add(_brief(arrival.subject))
        else:
            self._links[arrival.subject] = _Link(head.version, sha256, arrival.sequence, head.at)

    def _is_trusted(self, arrival: Arrival, record: LogRecord, said: Checkpoint) -> bool:
        where = arrival.sequence, arrival.subject
        if not is_signed(record, said):
            self._say(*where, "its signature is wrong")
        elif self._keys and said.key not in self._keys:
            self._say(*where, f"it is signed by {said.key}, which is none of the keys given")
            self._strange_key = said.key
        else:
            return True
        return False

    def _judge(self, arrival: Arrival, said: Checkpoint, leaves: bytes | None) -> None:
        if self._leaves.after != said.after:
            self._say(arrival.sequence, arrival.subject, "most of what it signs is missing")
            self._leaves = Leaves(said.sequence)
            return
        ours = self._leaves.up_to(said.sequence)
        if hashlib.sha256(ours).hexdigest() != said.digest:
            self._compare(arrival, said, ours, leaves)
        self._leaves.drop(said.sequence)

    def _judge_some(self, arrival: Arrival, said: Checkpoint, leaves: bytes | None) -> None:
        """Look for the records shown among the leaves."""
        mine: list[tuple[int, bytes]] = []
        while self._some and self._some[0][0] <= said.sequence:
            mine.append(self._some.popleft())
        if not mine:
            return
        if leaves is None or hashlib.sha256(leaves).hexdigest() != said.digest:
            self._say(arrival.sequence, arrival.subject, "its leaves are missing: nothing can be said by it")
            return
        for sequence, leaf in mine:
            at = (sequence - said.after - 1) * LEAF_BYTES
            if leaves[at : at + LEAF_BYTES] != leaf:
                self._say(sequence, "", f"it is not the record that was signed (checkpoint {arrival.sequence})")

    def _compare(self, arrival: Arrival, said: Checkpoint, ours: bytes, leaves: bytes | None) -> None:
        """Name what is not as it was signed."""
        if leaves is None or hashlib.sha256(leaves).hexdigest() != said.digest:
            what = f"what it signs, {said.after + 1} to {said.sequence}, is not what is there; which, it can't tell:"
            self._say(arrival.sequence, arrival.subject, f"{what} its leaves are missing")
            return
        ours = ours.ljust(len(leaves), b"\0")
        for at in range(0, len(leaves), LEAF_BYTES):
            was, is_now = leaves[at : at + LEAF_BYTES], ours[at : at + LEAF_BYTES]
            if was == is_now:
                continue
            sequence = said.after + 1 + at // LEAF_BYTES
            if is_now == NO_LEAF:
                what = "it was signed, and is missing"
            elif was == NO_LEAF:
                what = "it was not there when its checkpoint was signed"
            else:
                what = "it is not the record that was signed"
            self._say(sequence, "", f"{what} (checkpoint {arrival.sequence})")

    def _say_missing(self, first: int, last: int) -> None:
        what = "it is missing" if first == last else f"it and all up to {last} are missing"
        self._say(first, "", what)

    def _say(self, sequence: int, subject: str, what: str) -> None:
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(sequence=sequence, subject=subject, what=what))


def _jump(before: _Link, head: _Head) -> str:
    if head.version <= before.version:
        return f"it is version {head.version}, after version {before.version} (record {before.sequence})"
    first, last = before.version + 1, head.version - 1
    missing = f"version {first} is" if first == last else f"versions {first} to {last} are"
    return f"it is version {head.version}, and {missing} missing (after record {before.sequence})"


def _brief(subject: str) -> bytes:
    return leaf_of(subject, b"")
