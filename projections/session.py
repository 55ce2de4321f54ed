"""`Session`, `INITIAL`, `evolve`: one session, folded from its facts. Pure.

A session groups tasks, and is there as soon as a task names it: only its title and its deletion are facts of its own.
"""

from datetime import datetime
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from eventstore.events import SessionDeleted, SessionRecord, SessionTitled, UnknownFact
from projections.task import MAX_KEYS


class Session(Struct, frozen=True, kw_only=True):
    """One session as its facts tell it. `sequence`, `version` and `sha256` are those of its last record."""

    sequence: int = 0
    version: int = 0
    sha256: str = ""
    title: str | None = None
    deleted: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None
    keys: tuple[str, ...] = ()
    unknown: str | None = None


INITIAL = Session()


def evolve(session: Session, record: SessionRecord, *, sequence: int, sha256: str) -> Session:
    """The session after one more record, stored under `sequence` as bytes with this SHA-256. Never raises."""
    return replace(
        _fold(session, record.fact),
        sequence=sequence,
        version=record.version,
        sha256=sha256,
        created_at=session.created_at or record.at,
        updated_at=record.at,
        keys=session.keys if record.key is None else (*session.keys, record.key)[-MAX_KEYS:],
    )


def _fold(session: Session, fact: SessionTitled | SessionDeleted | UnknownFact) -> Session:
    match fact:
        case SessionTitled(title=title):
            return replace(session, title=title)
        case SessionDeleted():
            return replace(session, deleted=True)
        case UnknownFact(tag=tag):
            return replace(session, unknown=tag)
        case _:
            assert_never(fact)
