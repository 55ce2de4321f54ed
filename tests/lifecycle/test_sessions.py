"""A session's few facts, decided and folded."""

import hashlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from app.decide import Rejected
from app.sessions import DeleteSession, SessionCommand, TitleSession, decide
from eventstore.events import SessionDeleted, SessionFact, SessionRecord, SessionTitled, UnknownFact, tag_of
from projections.session import INITIAL, Session, evolve

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def session(*facts: SessionFact | UnknownFact, key: str | None = None) -> Session:
    """The session to which these happened; `key` came with the last of them."""
    folded = INITIAL
    for version, fact in enumerate(facts, 1):
        record = SessionRecord(
            record_id=f"r{version}",
            version=version,
            at=BEGIN + timedelta(seconds=version),
            actor="ann",
            causation_id=None,
            correlation_id=None,
            previous=folded.sha256,
            key=key if version == len(facts) else None,
            fact=fact,
        )
        stored = msgspec.json.encode(record)
        read_back = msgspec.json.decode(stored, type=SessionRecord)
        folded = evolve(folded, read_back, sequence=10 * version, sha256=hashlib.sha256(stored).hexdigest())
    return folded


def test_a_session_has_its_last_title_and_tells_when_it_got_it() -> None:
    told = session(SessionTitled(title="Trip"), SessionTitled(title="Trip to Rome"))
    assert (told.title, told.deleted, told.version, told.sequence) == ("Trip to Rome", False, 2, 20)
    assert (told.created_at, told.updated_at) == (BEGIN + timedelta(seconds=1), BEGIN + timedelta(seconds=2))
    assert len(told.sha256) == 64


def test_a_deleted_session_keeps_its_title() -> None:
    told = session(SessionTitled(title="Trip"), SessionDeleted())
    assert (told.title, told.deleted) == ("Trip", True)


@pytest.mark.parametrize(
    ("told", "command", "decision"),
    [
        (session(), TitleSession(title="Trip"), SessionTitled(title="Trip")),
        (session(SessionTitled(title="Trip")), TitleSession(title="Rome"), SessionTitled(title="Rome")),
        (session(SessionTitled(title="Trip")), TitleSession(title="Trip"), None),
        (session(), DeleteSession(), SessionDeleted()),
        (session(SessionTitled(title="Trip")), DeleteSession(), SessionDeleted()),
        (session(SessionDeleted()), DeleteSession(), None),
    ],
)
def test_a_wish_gives_one_fact_or_nothing_where_it_is_true_already(
    told: Session, command: SessionCommand, decision: SessionFact | None
) -> None:
    assert decide(command, told) == decision


def test_a_deleted_session_takes_no_title() -> None:
    decision = decide(TitleSession(title="Trip"), session(SessionDeleted()))
    assert isinstance(decision, Rejected)
    assert decision.reason == "not_found"


def test_a_repeated_key_changes_nothing() -> None:
    told = session(SessionTitled(title="Trip"), key="k1")
    assert decide(TitleSession(title="Rome", key="k1"), told) is None
    assert decide(TitleSession(title="Rome", key="k2"), told) == SessionTitled(title="Rome")


@pytest.mark.parametrize("command", [TitleSession(title="Trip"), DeleteSession()])
def test_a_session_that_a_newer_release_wrote_to_is_left_alone(command: SessionCommand) -> None:
    told = session(UnknownFact(tag="session.shared", fields={"with": "bob"}))
    assert told.unknown == "session.shared"
    decision = decide(command, told)
    assert isinstance(decision, Rejected)
    assert decision.reason == "written_by_newer_release"


def test_the_tags_of_a_sessions_facts_never_change() -> None:
    assert [tag_of(SessionTitled(title="")), tag_of(SessionDeleted())] == ["session.titled", "session.deleted"]
