"""Writes the log to a file, line by line, so that it can be continued where it stopped: an export.

The first line of an NDJSON export is its header; a blob's line comes before that of the record which refers to it. What
was cut off in the middle (a line, a blob without its record) is cut away and written again: the same bytes.
"""

import mmap
import os
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from eventstore.codec import Unreadable, blobs_of
from eventstore.events import Owner, Time
from eventstore.log import CHECKPOINTS, Arrival, LogError
from projections.cloudevents import cloudevent_of
from projections.lines import BadLine, arrival_of, blob_line, line_of, whose
from projections.sources import Source

HEADER = b'{"tasktrail_export":'
CLOUDEVENT = b'{"specversion":'
BLOB = b'{"blob":'
OTHERS = (
    (b"PAR1", "is a Parquet export"),
    (CLOUDEVENT, "is a CloudEvents export"),
    (b'{"sequence":', "has no header: the first line of the export is missing"),
    (BLOB, "has no header: the first line of the export is missing"),
    (b"\xef\xbb\xbf", "begins with a byte order mark: it went through another program"),
)
"""What else a file may begin with, and what it is then."""


class NotContinued(LogError):
    """What is there already is no beginning of this export."""


class Selection(Struct, frozen=True, kw_only=True):
    """What of the log is wanted: of one owner (and the checkpoints, which prove it), after a sequence, since a time."""

    owner: Owner | None = None
    after: int = 0
    since: Time | None = None

    def takes(self, arrival: Arrival) -> bool:
        """Whether this record is wanted. One whose time can't be read is: it is what an auditor looks for."""
        if self.owner is not None and arrival.subject != CHECKPOINTS:
            about = whose(arrival.subject)
            if about is None or about[0] != self.owner:
                return False
        at = None if self.since is None else _head_of(arrival).at
        return at is None or self.since is None or at >= self.since


class Header(Struct, frozen=True, kw_only=True):
    """The first line of an export: of which form it is, which release made it and when, and what is in it.

    `whole`: all records from the first on; else those of one owner, or not from the first on, as `selection` says.
    """

    tasktrail_export: int = 1
    version: str
    made_at: Time
    whole: bool
    selection: Selection = Selection()

    @property
    def contradiction(self) -> str:
        """What can't be; nobody signed this line. Empty: nothing."""
        if self.whole == (self.selection == Selection()):
            return ""
        what = "all of the log, and only a part" if self.whole else "a part of the log, and not which"
        return f"the header says that this is {what}: it was changed"


class Form(Struct, frozen=True):
    """How a record is written. `blobs`: what it refers to is written before it. `header`: the first line, or b""."""

    written: Callable[[Arrival], bytes]
    sequence_of: Callable[[bytes], int | None]
    begins: bytes
    blobs: bool = False
    header: bytes = b""


class _Head(Struct, frozen=True):
    at: Time | None = None


class _Event(Struct):
    """A CloudEvent's `sequence` is a text, with zeros before it."""

    sequence: str


_head = msgspec.json.Decoder(_Head)
_header = msgspec.json.Decoder(Header)
_event = msgspec.json.Decoder(_Event)


def ndjson(version: str, made_at: datetime, source: Source, selection: Selection) -> Form:
    """The form that can be verified, and imported."""
    whole = source.whole and selection == Selection()
    header = Header(version=version, made_at=made_at, whole=whole, selection=selection)
    first = msgspec.json.encode(header) + b"\n"
    return Form(line_of, _sequence_in_ndjson, HEADER, blobs=True, header=first)


def cloudevents() -> Form:
    """A structured CloudEvent a line, without blobs."""
    return Form(lambda arrival: cloudevent_of(arrival) + b"\n", _sequence_in_cloudevents, CLOUDEVENT)


def header_of(line: bytes) -> Header:
    """Raises BadLine, which says what of the file, where it is no export's first line, or that of a newer release."""
    if not line:
        raise BadLine("is empty")
    for begins, what in OTHERS:
        if line.startswith(begins):
            raise BadLine(what)
    if line.endswith(b"\r\n"):
        raise BadLine("is not as it was written: its line endings were changed, to CR and LF; change them back")
    try:
        header = _header.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadLine(f"is no export: its first line is no header ({error})") from error
    if header.tasktrail_export != 1:
        raise BadLine(f"is an export in form {header.tasktrail_export}, which this release can't read")
    return header


class Kept(Struct, frozen=True):
    """What a file holds: its last record's line, that record's sequence (0: it has no record), and up to where it is
    whole."""

    sequence: int
    line: bytes
    size: int


def kept_in(path: Path, begins: bytes, sequence_of: Callable[[bytes], int | None]) -> Kept | None:
    """What is there of an export; None: nothing, or not even a first line. Raises NotContinued, BadLine."""
    if not path.exists() or not path.stat().st_size:
        return None
    foreign = NotContinued(f"{path} is there already, and is no such export")
    if not path.is_file():
        raise foreign
    with _mapped(path) as content:
        first = content[: len(begins)]
        if first != begins[: len(first)]:
            raise foreign
        end = content.rfind(b"\n") + 1
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            line = content[begin:end]
            sequence = sequence_of(line)
            if sequence is not None:
                return Kept(sequence, line, end)
            end = begin
    return None


@contextmanager
def _mapped(path: Path) -> Generator[mmap.mmap]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content
    except OSError as error:
        raise BadLine(f"{path} can't be read: {error.strerror or error}") from error


def begun(path: Path, form: Form) -> Kept:
    """Begin the file, or find what is whole of it. Raises NotContinued where it was to hold something else."""
    kept = kept_in(path, form.begins, form.sequence_of)
    if kept is None:
        with made_privately(path) as file:
            file.write(form.header)
        return Kept(0, form.header, len(form.header))
    if form.header:
        with path.open("rb") as file:
            first = file.readline()
        try:
            there, wanted = header_of(first), header_of(form.header)
        except BadLine as error:
            raise NotContinued(f"{path} {error}") from error
        if (there.selection, there.whole) != (wanted.selection, wanted.whole):
            raise NotContinued(f"{path} is there already, and is an export of something else")
    return kept


def made_privately(path: Path) -> BinaryIO:
    """An empty file, readable by its user alone where it is new: everybody's data is in it. Raises OSError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


async def check_continued(kept: Kept, form: Form, source: Source) -> None:
    """Raises NotContinued where what a file holds is not of this log."""
    if not kept.sequence:
        return
    async with aclosing(source.arrivals(kept.sequence - 1, kept.sequence)) as batches:
        found = [arrival async for batch in batches for arrival in batch]
    if not found or form.written(found[0]) != kept.line:
        raise NotContinued(
            f"the file's last line is not this log's record {kept.sequence}: it is an export of another log, or the"
            " line was changed"
        )


async def export(
    source: Source,
    out: BinaryIO,
    form: Form,
    selection: Selection,
    on_progress: Callable[[int, int], None],
    *,
    after: int,
    up_to: int,
) -> int:
    """Write the records after a sequence, up to another; how many were wanted. Raises LogError, OSError."""
    written = 0
    async with aclosing(source.arrivals(max(after, selection.after), up_to)) as batches:
        async for batch in batches:
            for arrival in batch:
                if not selection.takes(arrival):
                    continue
                for name in references_of(arrival) if form.blobs else ():
                    content = await source.blob(name)
                    if content is not None:
                        out.write(blob_line(name, content))
                out.write(form.written(arrival))
                written += 1
            on_progress(batch[-1].sequence, up_to)
    return written


def references_of(arrival: Arrival) -> tuple[str, ...]:
    """The names of the blobs that a record refers to: its own large fields, and the files that came with its task."""
    try:
        return blobs_of(arrival.stored)
    except Unreadable:
        return ()


def _head_of(arrival: Arrival) -> _Head:
    try:
        return _head.decode(arrival.stored)
    except (msgspec.DecodeError, RecursionError):
        return _Head()


def _sequence_in_ndjson(line: bytes) -> int | None:
    if line.startswith(BLOB):
        return None
    return 0 if line.startswith(HEADER) else arrival_of(line).sequence


def _sequence_in_cloudevents(line: bytes) -> int | None:
    try:
        return int(_event.decode(line).sequence)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadLine(f"not a CloudEvent of ours: {error}") from error
