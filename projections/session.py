"""`Session`, `evolve`: one session, folded from its facts; `SessionView`: with what its tasks come to. Pure.

A session groups tasks, and is there as soon as a task names it: only its title and its deletion are facts of its own.
"""

from datetime import datetime
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from eventstore.events import Owner, SessionDeleted, SessionTitled, UnknownFact
from eventstore.log import SessionRecorded
from projections.task import MAX_KEYS, Task

NANOS = 1_000_000_000


class Session(Struct, frozen=True, kw_only=True):
    """One session as its facts tell it. `sequence`, `version` and `sha256` are those of its last record.

    `deletion` is the sequence of its last deletion (0: none): the tasks before it are not this session's any more, and
    those after it begin it anew."""

    sequence: int = 0
    version: int = 0
    sha256: str = ""
    title: str | None = None
    deletion: int = 0
    updated_at: datetime | None = None
    keys: tuple[str, ...] = ()
    unknown: str | None = None


INITIAL = Session()


def follows(recorded: SessionRecorded, session: Session) -> bool:
    """Whether this is the session's next record, by its version and by the hash of the one before."""
    return recorded.record.version == session.version + 1 and recorded.record.previous == session.sha256


def evolve(session: Session, recorded: SessionRecorded) -> Session:
    """The session after one more record. Never raises."""
    record = recorded.record
    return replace(
        _fold(session, record.fact, recorded.sequence),
        sequence=recorded.sequence,
        version=record.version,
        sha256=recorded.sha256,
        updated_at=record.at,
        keys=session.keys if record.key is None else (*session.keys, record.key)[-MAX_KEYS:],
    )


def _fold(session: Session, fact: SessionTitled | SessionDeleted | UnknownFact, sequence: int) -> Session:
    match fact:
        case SessionTitled(title=title):
            return replace(session, title=title)
        case SessionDeleted():
            return replace(session, title=None, deletion=sequence)
        case UnknownFact(tag=tag):
            return replace(session, unknown=tag)
        case _:
            assert_never(fact)


class Tally(Struct, frozen=True, kw_only=True):
    """What tasks come to. The cost is in billionths of a US dollar: sums of fractions would drift."""

    tasks: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nanos: int = 0


def tally_of(task: Task) -> Tally:
    """One task's part; that of a task before its first fact is nothing."""
    usage = task.usage
    return Tally(
        tasks=int(task.version > 0),
        completed=int(task.status == "completed"),
        failed=int(task.status in ("failed", "timed_out")),
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
        cost_nanos=round(usage.cost * NANOS) if usage else 0,
    )


class SessionView(Struct, frozen=True, kw_only=True):
    """A session: its own facts folded, and its tasks counted. `first` and `latest` are the sequences at which its tasks
    begin, the first and the last of them (0: it has none, or it was deleted after them: then there is no session).

    `whole`: no record of its own was left out. `active_at` is the time of the last word on any of its tasks."""

    owner: Owner
    session_id: str
    session: Session = INITIAL
    tally: Tally = Tally()
    first: int = 0
    latest: int = 0
    active_at: datetime | None = None
    whole: bool = True


def told(view: SessionView, recorded: SessionRecorded) -> SessionView:
    """The view after one more record of the session itself."""
    session = evolve(view.session, recorded)
    whole = view.whole and follows(recorded, view.session)
    if session.deletion == view.session.deletion:
        return replace(view, session=session, whole=whole)
    return SessionView(owner=view.owner, session_id=view.session_id, session=session, whole=whole)


def gathered(view: SessionView, place: int, before: Task, now: Task) -> SessionView:
    """The view after one of its tasks, whose first fact is at `place`, went from `before` to `now`."""
    if place <= view.session.deletion:
        return view
    assert now.updated_at is not None, "it has a record"
    return replace(
        view,
        session_id=now.session_id or view.session_id,
        tally=_changed(view.tally, tally_of(before), tally_of(now)),
        first=min(view.first or place, place),
        latest=max(view.latest, place),
        active_at=now.updated_at if view.active_at is None else max(view.active_at, now.updated_at),
    )


def _changed(total: Tally, less: Tally, more: Tally) -> Tally:
    return Tally(
        tasks=total.tasks - less.tasks + more.tasks,
        completed=total.completed - less.completed + more.completed,
        failed=total.failed - less.failed + more.failed,
        input_tokens=total.input_tokens - less.input_tokens + more.input_tokens,
        output_tokens=total.output_tokens - less.output_tokens + more.output_tokens,
        cost_nanos=total.cost_nanos - less.cost_nanos + more.cost_nanos,
    )
