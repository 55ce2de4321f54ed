"""Sweeps orphaned blobs: a blob is stored before its fact, and a crash between the two leaves it alone."""

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
from msgspec import Struct

from eventstore import codec
from eventstore.blobs import BUCKET, JetStreamBlobs, Meta
from eventstore.connection import RefusedByServer
from eventstore.log import LogUnavailable
from eventstore.stream import NO_SUCH_MESSAGE, Stream

log = structlog.stdlib.get_logger()

OLD_ENOUGH = timedelta(hours=1)
"""No append takes so long: what has no fact by then never will."""
CHUNKS, METAS = f"$O.{BUCKET}.C.", f"$O.{BUCKET}.M."


class _State(Struct):
    subjects: dict[str, int] | None = None


class _Info(Struct):
    state: _State
    total: int = 0


class _Last(Struct):
    time: datetime
    data: str = ""


class _Answer(Struct):
    message: _Last


async def sweep_blobs(
    blobs: JetStreamBlobs, facts: Stream, *, now: datetime | None = None, older_than: timedelta = OLD_ENOUGH
) -> int:
    """Remove blobs whose fact is not in the log, and chunks of no blob; how many there were. Raises LogUnavailable."""
    before = (now or datetime.now(UTC)) - older_than
    kept: set[str] = set()
    removed = 0
    for subject in await _subjects(blobs.stream, METAS):
        last = await _last(blobs.stream, subject)
        if last is None:
            continue
        meta = msgspec.json.decode(base64.b64decode(last.data), type=Meta)
        if last.time >= before or await _has_fact(facts, meta):
            kept.add(meta.nuid)
            continue
        await blobs.purge(subject)
        removed += 1
    for subject in await _subjects(blobs.stream, CHUNKS):
        if subject.removeprefix(CHUNKS) in kept:
            continue
        last = await _last(blobs.stream, subject)
        if last is not None and last.time < before:
            await blobs.purge(subject)
    if removed:
        log.info("blobs.swept", removed=removed)
    return removed


async def _has_fact(facts: Stream, meta: Meta) -> bool:
    """Whether the record that refers to this is in the log: it is the one after the expected, or there is none."""
    subject, expected = meta.metadata.get("subject"), meta.metadata.get("expected", "0")
    if not subject:
        return True  # not one of ours to judge
    found = await facts.get(sequence=int(expected) + 1, subject=subject)
    if found is None:
        return False
    try:
        return meta.name in codec.blobs_of(found.stored)
    except codec.Unreadable:
        return True


async def _subjects(stream: Stream, prefix: str) -> list[str]:
    found: list[str] = []
    while True:
        body = await _asked(
            stream, f"STREAM.INFO.{stream.name}", {"subjects_filter": f"{prefix}>", "offset": len(found)}
        )
        info = msgspec.convert(body, type=_Info)
        more = list(info.state.subjects or {})
        found += more
        if not more or len(found) >= info.total:
            return found


async def _last(stream: Stream, subject: str) -> _Last | None:
    try:
        body = await stream.connection.api(f"STREAM.MSG.GET.{stream.name}", {"last_by_subj": subject})
    except RefusedByServer as error:
        if error.err_code == NO_SUCH_MESSAGE:
            return None
        raise LogUnavailable(str(error)) from error
    return msgspec.convert(body, type=_Answer, strict=False).message


async def _asked(stream: Stream, call: str, request: dict[str, object]) -> dict[str, object]:
    try:
        return await stream.connection.api(call, request)
    except RefusedByServer as error:
        raise LogUnavailable(str(error)) from error
