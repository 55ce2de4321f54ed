"""Writes the log to a file, line by line, so that it can be continued where it stopped: an export.

The first line of an NDJSON export is its header; a blob's line comes before that of the record which refers to it. What
was cut off in the middle (a line, a blob without its record) is cut away and written again: the same bytes.
"""

import mmap
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

    `whole`: all records from the first on; else those of one owner, or not from the first on.
    """

    tasktrail_export: int = 1
    version: str
    made_at: Time
    whole: bool
    selection: Selection = Selection()


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
    """Raises BadLine where it is no export's first line, or that of a newer release."""
    try:
        header = _header.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadLine(f"not the first line of an export: {error}") from error
    if header.tasktrail_export != 1:
        raise BadLine(f"an export in form {header.tasktrail_export}, which this release can't read")
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
        path.write_bytes(form.header)
        return Kept(0, form.header, len(form.header))
    if form.header:
        with path.open("rb") as file:
            there, wanted = header_of(file.readline()), header_of(form.header)
        if (there.selection, there.whole) != (wanted.selection, wanted.whole):
            raise NotContinued(f"{path} is there already, and is an export of something else")
    return kept


async def check_continued(kept: Kept, form: Form, source: Source) -> None:
    """Raises NotContinued where what a file holds is not of this log."""
    if not kept.sequence:
        return
    async with aclosing(source.arrivals(kept.sequence - 1, kept.sequence)) as batches:
        found = [arrival async for batch in batches for arrival in batch]
    if not found or form.written(found[0]) != kept.line:
        raise NotContinued(f"the file is an export of another log: this one's record {kept.sequence} is another")


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
