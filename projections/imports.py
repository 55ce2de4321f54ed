"""Reads an export: as a source to verify or count, and back into an empty log."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from eventstore.blobs import MAX_BLOB
from eventstore.jetstream import JetStreamLog
from eventstore.log import (
    CHECKPOINTS,
    OWNER_WORD,
    Arrival,
    BadSubject,
    LogError,
    session_of_subject,
    task_of_subject,
    task_subject,
)
from projections.audit import Verification
from projections.exports import BLOB, HEADER, Header, header_of, kept_in, references_of
from projections.lines import BadBlob, BadLine, arrival_of, blob_line, blob_of, line_of
from projections.sources import LogSource, verify

BATCH = 1_000
BATCH_BYTES = 8 * 1024 * 1024
MAX_BROKEN = 1_000
MAX_HEADER = 1024 * 1024
MAX_LINE = 2 * MAX_BLOB
"""Bytes of a line: a blob in base64 fits."""


class CantImport(LogError):
    """This file can't be put into this log."""


class ExportFile:
    """An NDJSON export. Lines that an export would not have written so are passed over, counted, and the first of them
    named in `broken`; where it is `strict` they raise BadLine. Build with `open`, which raises BadLine.

    What is not exactly as we write it may say one thing to us and another to whoever else reads it."""

    def __init__(self, path: Path, header: Header, *, strict: bool = False) -> None:
        self.path = path
        self.header = header
        self.broken: list[str] = []
        self.broken_count = 0
        self._strict = strict
        self._blobs: dict[str, bytes] = {}
        self._seen_blobs: set[str] = set()

    @classmethod
    def open(cls, path: Path, *, strict: bool = False) -> "ExportFile":
        """Read its first line."""
        if path.exists() and not path.is_file():
            raise BadLine(f"{path} is no file: it is read more than once")
        try:
            with path.open("rb") as file:
                return cls(path, header_of(file.readline(MAX_HEADER)), strict=strict)
        except BadLine as error:
            raise BadLine(f"{path} {error}; only an NDJSON export, as it was written, can be read") from error
        except OSError as error:
            raise BadLine(f"{path} can't be read: {error.strerror}") from error

    @property
    def whole(self) -> bool:
        """Whether it is all of a log, as its header says."""
        return self.header.whole

    @property
    def begins_later(self) -> bool:
        """Whether what came first was left out, as its header says without contradicting itself."""
        selection = self.header.selection
        return not self.header.contradiction and (selection.after > 0 or selection.since is not None)

    @property
    def last(self) -> int:
        """The last record's sequence."""
        kept = kept_in(self.path, HEADER, _sequence_or_none)
        return 0 if kept is None else kept.sequence

    async def end(self) -> int:
        """The last record's sequence."""
        return self.last

    async def arrivals(self, after: int, up_to: int) -> AsyncGenerator[list[Arrival]]:
        """The records after a sequence as they stand there, to the file's end, which does not move: one that is out of
        order must not be passed over for it. `blob` knows those of the last batch."""
        del up_to
        for batch in self.batches():
            if wanted := [arrival for arrival in batch if arrival.sequence > after]:
                yield wanted

    async def blob(self, name: str) -> bytes | None:
        """A blob of the batch in hand; of one that is not what its line says, nothing."""
        return self._blobs.get(name)

    @property
    def blobs(self) -> dict[str, bytes]:
        """The blobs of the batch in hand, by name."""
        return self._blobs

    def batches(self) -> Generator[list[Arrival]]:
        """All records, and no more than a bounded number of bytes at a time."""
        self.broken, self.broken_count = [], 0
        self._seen_blobs = set()
        if self.header.contradiction:
            self._say_broken(f"{self.path}: {self.header.contradiction}")
        with self.path.open("rb") as file:
            file.readline(MAX_HEADER)
            while True:
                # A record's blobs stand before it: a batch ends with a record, and its blobs are all here by then.
                self._blobs = {}
                batch = list(self._batch(file))
                if not batch:
                    break
                yield batch

    def _batch(self, file: BinaryIO) -> Generator[Arrival]:
        size = count = 0
        waiting: dict[str, bytes] = {}
        while (count < BATCH and size < BATCH_BYTES) or waiting:
            line = file.readline(MAX_LINE)
            size += len(line)
            try:
                if (blob := self._blob(line)) is not None:
                    waiting[blob[0]] = blob[1]
                    continue
                theirs, waiting = waiting, {}
                if theirs:
                    self._keep(theirs, line)
                if not line:
                    return
                arrival = arrival_of(line)
            except BadLine as error:
                if isinstance(error, BadBlob):
                    waiting[error.name] = b""
                self._break(file, line, error)
                continue
            if wrong := _not_ours(arrival, line):
                self._break(file, line, BadLine(wrong))
            yield arrival
            count += 1

    def _blob(self, line: bytes) -> tuple[str, bytes] | None:
        blob = blob_of(line)
        if blob is not None:
            if blob[0] in self._seen_blobs:
                raise BadLine(f"blob {blob[0]} comes a second time")
            if blob_line(*blob) != line:
                raise BadLine(f"blob {blob[0]} is not as an export writes it")
            self._seen_blobs.add(blob[0])
        return blob

    def _keep(self, waiting: dict[str, bytes], line: bytes) -> None:
        """The blobs before a record's line are its own, and no others."""
        wanted = references_of(arrival_of(line)) if line else ()
        self._blobs |= {name: content for name, content in waiting.items() if name in wanted}
        if strangers := sorted(waiting.keys() - set(wanted)):
            raise BadLine(f"blob {strangers[0]} is not what the record after it refers to")

    def _break(self, file: BinaryIO, line: bytes, error: BadLine) -> None:
        self._say_broken(f"at byte {file.tell() - len(line):,} of {self.path}: {error}")

    def _say_broken(self, what: str) -> None:
        if self._strict:
            raise BadLine(what)
        self.broken_count += 1
        if len(self.broken) < MAX_BROKEN:
            self.broken.append(what)


def _not_ours(arrival: Arrival, line: bytes) -> str:
    """Why no export would have written this line; empty: it would."""
    if not line.endswith(b"\n"):
        return "it was cut off in the middle"
    if line_of(arrival) != line or not is_subject(arrival.subject):
        return f"record {arrival.sequence} is not as an export writes it"
    return ""


def _sequence_or_none(line: bytes) -> int | None:
    if line.startswith(HEADER):
        return 0
    try:
        return None if line.startswith(BLOB) else arrival_of(line).sequence
    except BadLine:
        return None


def is_subject(subject: str) -> bool:
    """Whether it is one that the log has: a file may name any, and what is sent there would be sent with our rights."""
    if subject == CHECKPOINTS:
        return True
    about = task_of_subject(subject)
    try:
        if about is not None:
            return subject == task_subject(*about)
    except BadSubject:
        return False
    session = session_of_subject(subject)
    return session is not None and OWNER_WORD.fullmatch(session[0]) is not None


def last_checkpoint_in(path: Path) -> Arrival:
    """The last checkpoint of an export, or of a line of one that somebody kept. Raises BadLine where there is none."""
    last = None
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE):
                if b'"subject":"%b"' % CHECKPOINTS.encode() in line[:200]:
                    last = line
    except OSError as error:
        raise BadLine(f"{path} can't be read: {error.strerror}") from error
    if last is None:
        raise BadLine(f"{path} holds no checkpoint")
    return arrival_of(last)


async def faults_in(file: ExportFile, on_progress: Callable[[int, int], None]) -> Verification:
    """What is wrong with an export that is to be imported. Raises BadLine, CantImport."""
    if not file.whole:
        raise CantImport(
            f"{file.path} is no whole export: only all of a log, from its first record on, can be imported"
        )
    verification = Verification(whole=True)
    await verify(file, verification, on_progress)
    return verification


async def put_back(
    file: ExportFile, log: JetStreamLog, on_progress: Callable[[int, int], None], *, imported: bool
) -> int:
    """Write all of a file that has no faults into the log, from where an import of it stopped; how many records were
    written. Raises CantImport where the log holds anything else, LogError."""
    end = await file.end()
    held = await _held(file, log, end, imported=imported)
    written = 0
    async with aclosing(file.arrivals(held, end)) as batches:
        async for batch in batches:
            await _put_blobs(file, log, batch)
            if not imported:
                await log.put_back([Arrival(one.sequence, one.subject, one.stored) for one in batch])
            else:
                await log.put_back([Arrival(one.sequence, one.subject, one.stored, imported=True) for one in batch])
            written += len(batch)
            on_progress(batch[-1].sequence, end)
    return written


async def _put_blobs(file: ExportFile, log: JetStreamLog, batch: list[Arrival]) -> None:
    """Each with the word of which append it belongs to, by which its record is found."""
    before: dict[str, int] = {}
    for arrival in batch:
        for name in references_of(arrival):
            if (content := file.blobs.get(name)) is not None:
                subject = arrival.subject
                expected = before[subject] if subject in before else await log.last_on(subject)
                await log.blobs.put(name, content, subject=subject, expected=expected)
        before[arrival.subject] = arrival.sequence


async def _held(file: ExportFile, log: JetStreamLog, end: int, *, imported: bool) -> int:
    """How much of the file the log holds already, by an import that was interrupted. Raises CantImport."""
    held = await log.last_sequence()
    if held > end:
        raise CantImport(f"the log is not empty: it has {held:,} records, and {file.path} {end:,}")
    ours = (arrival for batch in file.batches() for arrival in batch)
    async with aclosing(LogSource(log).arrivals(0, held)) as batches:
        async for batch in batches:
            for there in batch:
                same = next(ours)
                if (there.sequence, there.subject, there.stored) != (same.sequence, same.subject, same.stored):
                    raise CantImport(f"the log is not empty: its record {there.sequence} is not that of {file.path}")
                if there.imported != imported:
                    how = "came by an import that does not dispatch" if there.imported else "was not imported"
                    raise CantImport(f"the log is not empty: its record {there.sequence} {how}")
    return held
