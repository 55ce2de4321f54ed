"""Record <-> bytes, and what is too big for a message moved to a blob. Old tags are upcast here to today's structs."""

from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import fields as struct_fields
from msgspec.structs import replace

from eventstore.events import (
    BlobReference,
    Fact,
    FileReference,
    LogRecord,
    Record,
    SessionFact,
    SessionRecord,
    Stamp,
    TaskFact,
    UnknownFact,
)
from eventstore.log import (
    Arrival,
    LogError,
    Recorded,
    SessionRecorded,
    TooLarge,
    blob_reference,
    session_of_subject,
    task_of_subject,
)

MAX_INLINE = 256 * 1024
"""Bytes of a stored record over which its large fields become a blob."""
MAX_DEPTH = 100
"""Levels of nesting in what others say: what is deeper may be written, but not be read back."""
MAX_STORED = 900 * 1024
"""Bytes of a stored record at most: a NATS message has 1 MiB, headers included."""

STAYS = "files"
"""The field that names other blobs: who looks for those must find them in the record itself."""
MIN_MOVED = 1024
"""Bytes of a field from which on moving it is worth while; a smaller one stays, for whoever folds needs it."""


Unpacked = TypeVar("Unpacked", bound=Fact)
Ours = TypeVar("Ours", Record, SessionRecord)


class Unreadable(LogError):
    """A message in the log that is no record of ours."""


class _Loose(Stamp, frozen=True, kw_only=True):
    fact: dict[str, object]


class _Files(Struct, frozen=True):
    files: tuple[FileReference, ...] = ()


class _Head(Struct, frozen=True):
    """What of a record names blobs."""

    blob: BlobReference | None = None
    fact: _Files = _Files()


AnyRecord = Record | SessionRecord | LogRecord

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)
_session_decoder = msgspec.json.Decoder(SessionRecord)
_log_decoder = msgspec.json.Decoder(LogRecord)
_head = msgspec.json.Decoder(_Head)
_loose = msgspec.json.Decoder(_Loose)


def encode(record: AnyRecord) -> bytes:
    """The stored bytes: one line of JSON."""
    return _encoder.encode(record)


def decode(stored: bytes) -> Record:
    """The record. A fact whose tag only a newer release knows becomes an UnknownFact. Raises Unreadable."""
    try:
        return _decoder.decode(stored)
    except msgspec.DecodeError as error:
        return _decode_loosely(stored, error, Record, TAGS)
    except RecursionError as error:
        raise Unreadable("nested too deeply to be read back") from error


def decode_session(stored: bytes) -> SessionRecord:
    """The record of a session, as `decode`. Raises Unreadable."""
    try:
        return _session_decoder.decode(stored)
    except msgspec.DecodeError as error:
        return _decode_loosely(stored, error, SessionRecord, SESSION_TAGS)
    except RecursionError as error:
        raise Unreadable("nested too deeply to be read back") from error


def recorded(arrival: Arrival) -> Recorded:
    """What a message of the log says. Raises Unreadable."""
    whose = task_of_subject(arrival.subject)
    if whose is None:
        raise Unreadable(f"{arrival.subject} is no task's subject")
    return Recorded(
        sequence=arrival.sequence,
        owner=whose[0],
        task_id=whose[1],
        record=decode(arrival.stored),
        stored=arrival.stored,
        imported=arrival.imported,
    )


def record_id_of(arrival: Arrival) -> str | None:
    """The id of a record, of whatever kind; None: it is no record of ours."""
    try:
        return decode(arrival.stored).record_id
    except Unreadable:
        return None


def session_recorded(arrival: Arrival) -> SessionRecorded:
    """What a message about a session says. Raises Unreadable."""
    whose = session_of_subject(arrival.subject)
    if whose is None:
        raise Unreadable(f"{arrival.subject} is no session's subject")
    record = decode_session(arrival.stored)
    return SessionRecorded(
        sequence=arrival.sequence, owner=whose[0], word=whose[1], record=record, sha256=arrival.sha256
    )


def _decode_loosely(stored: bytes, error: msgspec.DecodeError, kind: type[Ours], known: frozenset[str]) -> Ours:
    try:
        loose = _loose.decode(stored)
    except msgspec.DecodeError:
        raise Unreadable(str(error)) from error
    except RecursionError as too_deep:
        raise Unreadable("nested too deeply to be read back") from too_deep
    tag = loose.fact.get("type")
    if not isinstance(tag, str) or tag in known:
        raise Unreadable(str(error)) from error
    stamp = {name: getattr(loose, name) for name in Stamp.__struct_fields__}
    rest = {name: value for name, value in loose.fact.items() if name != "type"}
    return kind(**stamp, fact=UnknownFact(tag=tag, fields=rest))


def blobs_of(stored: bytes) -> tuple[str, ...]:
    """The names of the blobs that a record refers to: of its own large fields, and of the files that came with its
    task. Raises Unreadable."""
    if b'"blob":' not in stored:
        return ()
    try:
        head = _head.decode(stored)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    own = () if head.blob is None else (head.blob.name,)
    return (*own, *(file.blob for file in head.fact.files))


def decode_checkpoint(stored: bytes) -> LogRecord:
    """The record of a checkpoint. Raises Unreadable."""
    try:
        return _log_decoder.decode(stored)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error


def pack(record: AnyRecord) -> tuple[bytes, bytes | None]:
    """The bytes to store, and the blob to store before them where the record is over MAX_INLINE. Raises TooLarge."""
    stored = encode(record)
    if len(stored) <= MAX_INLINE:
        return stored, None
    if isinstance(record.fact, UnknownFact):
        return _bounded(stored), None
    moved = _large_fields(record.fact, len(stored) - MAX_INLINE // 2)
    if not moved:
        return _bounded(stored), None
    content = _encoder.encode({name: getattr(record.fact, name) for name in moved})
    defaults = {field.name: _default(field) for field in struct_fields(record.fact) if field.name in moved}
    small = replace(
        record, fact=replace(record.fact, **defaults), blob=blob_reference(record.record_id, content, moved)
    )
    return _bounded(encode(small)), content


def _bounded(stored: bytes) -> bytes:
    if len(stored) > MAX_STORED:
        raise TooLarge(f"a record has at most {MAX_STORED} bytes without what may go to a blob, this one {len(stored)}")
    return stored


def unpack(fact: Unpacked, blob: bytes) -> Unpacked:
    """The fact with the fields that its blob holds. Raises Unreadable."""
    try:
        moved = msgspec.json.decode(blob, type=dict[str, object])
        return msgspec.convert(msgspec.to_builtins(fact) | moved, type=type(fact))
    except msgspec.MsgspecError as error:
        raise Unreadable(str(error)) from error


def field_of(blob: bytes, name: str) -> object:
    """One field's value out of a blob."""
    return msgspec.json.decode(blob, type=dict[str, object]).get(name)


def _large_fields(fact: Fact, too_many_bytes: int) -> tuple[str, ...]:
    """The fewest, largest fields that may be left out of the record (they have defaults) and make it small enough."""
    sizes = sorted(
        (
            (len(_encoder.encode(getattr(fact, field.name))), field.name)
            for field in struct_fields(fact)
            if field.name != STAYS
            and (field.default is not msgspec.NODEFAULT or field.default_factory is not msgspec.NODEFAULT)
        ),
        reverse=True,
    )
    moved: list[str] = []
    for size, name in sizes:
        if too_many_bytes <= 0 or size < MIN_MOVED:
            break
        moved.append(name)
        too_many_bytes -= size
    return tuple(moved)


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


TAGS = frozenset(str(kind.__struct_config__.tag) for kind in TaskFact.__args__)
SESSION_TAGS = frozenset(str(kind.__struct_config__.tag) for kind in SessionFact.__args__)
"""The tags that this release knows."""


def nested_over(value: object, levels: int) -> bool:
    """Whether this JSON value is nested deeper than so many levels."""
    level = [value]
    for _ in range(levels + 1):
        if not level:
            return False
        level = [one for within in level for one in _within(within)]
    return bool(level)


def _within(value: object) -> Iterable[object]:
    match value:
        case dict():
            return msgspec.convert(value, dict[str, object]).values()
        case list():
            return msgspec.convert(value, list[object])
        case _:
            return ()
