"""The log as lines: one record a line of JSON, its stored bytes in it as they are. Exports, NDJSON feeds, CloudEvents.

A line's `record` is the very bytes that the log holds: whoever has the line can check their hash. Bytes that are no
line of JSON (somebody wrote into the log) are there as `stored`, in base64.
"""

import base64
import hashlib

import msgspec
from msgspec import Raw, Struct

from eventstore.cursor import event_id
from eventstore.events import Owner, TaskId
from eventstore.log import Arrival, LogError, task_of_subject

MAX_SEQUENCE = 2**63


class BadLine(LogError):
    """Not a line of ours."""


class BadBlob(BadLine):
    """A blob's line whose content is not what it says."""

    def __init__(self, name: str) -> None:
        super().__init__(f"blob {name} is not what its line says")
        self.name = name


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record: where in the log it is, whose, and what is stored."""

    sequence: int
    id: str
    subject: str
    record: Raw = Raw()
    stored: str = ""
    imported: bool = False


class BlobLine(Struct, frozen=True, kw_only=True):
    """A blob: the large fields of the record that comes after it."""

    blob: str
    sha256: str
    content: str


_line = msgspec.json.Decoder(Line)
_raw = msgspec.json.Decoder(Raw)
_blob = msgspec.json.Decoder(BlobLine)
_encode = msgspec.json.Encoder().encode


def line_of(arrival: Arrival) -> bytes:
    """With its end of line."""
    flag = b',"imported":true' if arrival.imported else b""
    subject = _encode(arrival.subject)
    head = b'{"sequence":%d,"id":"%b","subject":%b,' % (arrival.sequence, event_id(arrival).encode(), subject)
    if is_a_line(arrival.stored):
        return b'%b"record":%b%b}\n' % (head, arrival.stored, flag)
    return b'%b"stored":"%b"%b}\n' % (head, base64.b64encode(arrival.stored), flag)


def is_a_line(stored: bytes) -> bool:
    """Whether it is one value of JSON, in UTF-8 and without a line break."""
    try:
        _raw.decode(stored)
        if not stored.isascii():
            stored.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return b"\n" not in stored and b"\r" not in stored


def blob_line(name: str, content: bytes) -> bytes:
    """A blob as a line."""
    digest = hashlib.sha256(content).hexdigest()
    return _encode(BlobLine(blob=name, sha256=digest, content=base64.b64encode(content).decode())) + b"\n"


def arrival_of(line: bytes) -> Arrival:
    """The record of a line. Raises BadLine."""
    try:
        read = _line.decode(line)
        stored = base64.b64decode(read.stored, validate=True) if read.stored else bytes(read.record)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadLine(f"not a record's line: {error}") from error
    if not 1 <= read.sequence < MAX_SEQUENCE:
        raise BadLine(f"not a record's line: {read.sequence} is no sequence of a log")
    return Arrival(read.sequence, read.subject, stored, imported=read.imported)


def blob_of(line: bytes) -> tuple[str, bytes] | None:
    """Name and content of a blob's line; None: it is not one. Raises BadLine, and BadBlob where its content is
    not what it says."""
    if not line.startswith(b'{"blob":'):
        return None
    try:
        read = _blob.decode(line)
        content = base64.b64decode(read.content, validate=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadLine(f"not a blob's line: {error}") from error
    if hashlib.sha256(content).hexdigest() != read.sha256:
        raise BadBlob(read.blob)
    return read.blob, content


def whose(subject: str) -> tuple[Owner, TaskId | None] | None:
    """Owner (and task) that a record is about; None: a checkpoint's, which is about the whole log."""
    if (task := task_of_subject(subject)) is not None:
        return task
    words = subject.split(".")
    return (Owner(words[1]), None) if len(words) > 2 and words[0] == "sessions" else None
