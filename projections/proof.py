"""Signed checkpoints: what the log held up to a sequence, said so that whoever has the public key can check it.

Written down in docs/reference/audit.md: leaves, digest and the signed text can be made anew with other tools.
"""

import base64
import hashlib
from datetime import datetime

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec.structs import replace

from eventstore.codec import Unreadable, decode_checkpoint, field_of
from eventstore.events import Checkpoint, LogRecord
from eventstore.log import CHECKPOINTS, Arrival, LogError

LEAF_BYTES = 16
NO_LEAF = bytes(LEAF_BYTES)
MAX_LEAVES = 1_000_000
"""Of one checkpoint; a longer part of the log gets several."""
KEY_PREFIX = "ed25519:"


class BadKey(LogError):
    """Not a key of ours."""


def leaf_of(subject: str, stored_sha256: bytes) -> bytes:
    """16 bytes that stand for a record: of its subject, and of the SHA-256 of what is stored."""
    return hashlib.sha256(subject.encode() + b"\n" + stored_sha256).digest()[:LEAF_BYTES]


class Leaves:
    """The leaves of the records after a sequence, as they come."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.own = 0
        self._bytes = bytearray()

    @property
    def sequence(self) -> int:
        """The last one."""
        return self.after + len(self._bytes) // LEAF_BYTES

    @property
    def records(self) -> int:
        """How many sequences, less the checkpoints among them."""
        return self.sequence - self.after - self.own

    def add(self, subject: str, sequence: int, stored_sha256: bytes) -> None:
        """The next record; sequences in between are such as the log does not hold."""
        self.skip_to(sequence - 1)
        self._bytes += leaf_of(subject, stored_sha256)
        self.own += subject == CHECKPOINTS

    def skip_to(self, sequence: int) -> None:
        """The log holds none up to there."""
        self._bytes += NO_LEAF * (sequence - self.sequence)

    def up_to(self, sequence: int) -> bytes:
        """Those up to there."""
        return bytes(self._bytes[: (sequence - self.after) * LEAF_BYTES])

    def drop(self, sequence: int) -> None:
        """Forget those up to there."""
        del self._bytes[: (sequence - self.after) * LEAF_BYTES]
        self.after, self.own = sequence, 0


def signed(
    key: Ed25519PrivateKey, record_id: str, at: datetime, actor: str, previous: Arrival | None, leaves: Leaves
) -> LogRecord:
    """The checkpoint that comes after `previous` and covers all that `leaves` has."""
    version = 1 if previous is None else decode_checkpoint(previous.stored).version + 1
    of_leaves = leaves.up_to(leaves.sequence)
    unsigned = Checkpoint(
        after=leaves.after,
        sequence=leaves.sequence,
        digest=hashlib.sha256(of_leaves).hexdigest(),
        key=named(key.public_key()),
        signature="",
        leaves=base64.b64encode(of_leaves).decode(),
    )
    record = LogRecord(
        version=version,
        at=at,
        actor=actor,
        causation_id=None,
        correlation_id=None,
        previous="" if previous is None else previous.sha256,
        record_id=record_id,
        fact=unsigned,
    )
    signature = base64.b64encode(key.sign(text_of(record, unsigned))).decode()
    return replace(record, fact=replace(unsigned, signature=signature))


def text_of(record: LogRecord, checkpoint: Checkpoint) -> bytes:
    """What is signed."""
    lines = (
        "tasktrail checkpoint 1",
        f"version {record.version}",
        f"record {record.record_id}",
        f"actor {record.actor}",
        f"at {record.at.isoformat()}",
        f"previous {record.previous}",
        f"after {checkpoint.after}",
        f"sequence {checkpoint.sequence}",
        f"digest {checkpoint.digest}",
    )
    return ("\n".join(lines) + "\n").encode()


def is_signed(record: LogRecord, checkpoint: Checkpoint) -> bool:
    """Whether the signature is that of its own key."""
    try:
        public_key(checkpoint.key).verify(base64.b64decode(checkpoint.signature), text_of(record, checkpoint))
    except (BadKey, ValueError, InvalidSignature):
        return False
    return True


def named(key: Ed25519PublicKey) -> str:
    """A public key as it is written: `ed25519:` and the base64 of its 32 bytes."""
    return KEY_PREFIX + base64.b64encode(key.public_bytes_raw()).decode()


def public_key(name: str) -> Ed25519PublicKey:
    """The key of that name. Raises BadKey."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(name.removeprefix(KEY_PREFIX), validate=True))
    except ValueError as error:
        raise BadKey(f"not a public key: {name[:80]!r} ({KEY_PREFIX}<base64> is one)") from error


def leaves_in(arrival: Arrival, blob: bytes | None) -> bytes | None:
    """A checkpoint's leaves: in its record, or in its blob; None where they are not there or are no base64."""
    try:
        fact = decode_checkpoint(arrival.stored).fact
        text = fact.leaves if isinstance(fact, Checkpoint) else ""
        text = text or (str(field_of(blob, "leaves")) if blob is not None else "")
        return base64.b64decode(text, validate=True) if text else None
    except (Unreadable, ValueError, msgspec.MsgspecError):
        return None
