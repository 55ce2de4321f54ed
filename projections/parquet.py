"""An export as a Parquet file: a row for each record, a row group at a time. The only room that knows pyarrow."""

# pyarrow publishes no types; what is taken from it does not leave this room.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from eventstore.events import Time
from eventstore.log import Arrival
from projections.exports import made_privately, references_of
from projections.imports import ExportFile
from projections.lines import whose

ROWS = 20_000
ROW_BYTES = 32 * 1024 * 1024
"""No row group has more: that much is in memory."""
TEXT, BYTES = pa.string(), pa.binary()
SCHEMA = pa.schema(
    [
        ("sequence", pa.int64()),
        ("subject", TEXT),
        ("owner", TEXT),
        ("task_id", TEXT),
        ("version", pa.int32()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("actor", TEXT),
        ("type", TEXT),
        ("record_id", TEXT),
        ("causation_id", TEXT),
        ("correlation_id", TEXT),
        ("previous", TEXT),
        ("imported", pa.bool_()),
        ("record", BYTES),
        ("blob", BYTES),
    ]
)


class _Fact(Struct, frozen=True):
    type: str | None = None


class _Stamp(Struct, frozen=True):
    """What of a record is a column of its own; what can't be read has none of it."""

    version: int | None = None
    at: Time | None = None
    actor: str | None = None
    fact: _Fact = _Fact()
    record_id: str | None = None
    causation_id: str | None = None
    correlation_id: str | None = None
    previous: str | None = None


_stamp = msgspec.json.Decoder(_Stamp)


def to_parquet(export: Path, path: Path, on_progress: Callable[[int, int], None]) -> int:
    """Write the table, and then remove the export; how many rows. Raises LogError, OSError."""
    file = ExportFile.open(export)
    end, count = file.last, 0
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    with made_privately(unfinished) as out, pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        for rows in _groups(file):
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            count += len(rows)
            on_progress(msgspec.convert(rows[-1]["sequence"], int), end)
    unfinished.replace(path)
    export.unlink()
    return count


def _groups(file: ExportFile) -> Iterator[list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    size = 0
    for batch in file.batches():
        for arrival in batch:
            rows.append(_row(arrival, file.blobs))
            size += len(arrival.stored) + sum(len(file.blobs.get(name, b"")) for name in references_of(arrival))
        if len(rows) >= ROWS or size >= ROW_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _row(arrival: Arrival, blobs: Mapping[str, bytes]) -> dict[str, object]:
    about = whose(arrival.subject)
    try:
        stamp = _stamp.decode(arrival.stored)
    except (msgspec.DecodeError, RecursionError):
        stamp = _Stamp()
    return {
        "sequence": arrival.sequence,
        "subject": arrival.subject,
        "owner": about[0] if about else None,
        "task_id": about[1] if about else None,
        "version": stamp.version,
        "at": stamp.at,
        "actor": stamp.actor,
        "type": stamp.fact.type,
        "record_id": stamp.record_id,
        "causation_id": stamp.causation_id,
        "correlation_id": stamp.correlation_id,
        "previous": stamp.previous,
        "imported": arrival.imported,
        "record": arrival.stored,
        "blob": blobs.get(stamp.record_id or ""),
    }
