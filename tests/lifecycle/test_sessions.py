"""A session's few facts, decided and folded."""

from datetime import UTC, datetime, timedelta

import pytest

from app.decide import Rejected
from app.sessions import DeleteSession, SessionCommand, TitleSession, decide
from eventstore.codec import encode, session_recorded
from eventstore.events import SessionDeleted, SessionFact, SessionRecord, SessionTitled, UnknownFact, tag_of
from eventstore.log import Arrival
from projections.session import INITIAL, Session, evolve, follows

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def session(*facts: SessionFact | UnknownFact, key: str | None = None) -> Session:
    """The session to which these happened, at sequences 10, 20 ...; `key` came with the last of them."""
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
        read_back = session_recorded(Arrival(10 * version, "sessions.ann.s1", encode(record)))
        assert follows(read_back, folded)
        folded = evolve(folded, read_back)
        assert not follows(read_back, folded)
    return folded


def wish(command: SessionCommand, told: Session, *, newest: int = 5) -> SessionFact | Rejected | None:
    """What is decided where the session's newest task begins at a sequence; after it comes what was told."""
    return decide(command, told, session_id="s 1", newest=newest)


def titled(title: str) -> SessionTitled:
    return SessionTitled(title=title, session_id="s 1")


GONE = SessionDeleted(session_id="s 1")


def test_a_session_has_its_last_title_and_tells_when_it_got_it() -> None:
    told = session(titled("Trip"), titled("Trip to Rome"))
    assert (told.title, told.deletion, told.version, told.sequence) == ("Trip to Rome", 0, 2, 20)
    assert told.updated_at == BEGIN + timedelta(seconds=2)
    assert len(told.sha256) == 64


def test_a_deleted_session_has_no_title_and_tells_where_it_was_deleted() -> None:
    assert (session(titled("Trip"), GONE).title, session(titled("Trip"), GONE).deletion) == (None, 20)
    again = session(titled("Trip"), GONE, titled("Rome"))
    assert (again.title, again.deletion) == ("Rome", 20)


@pytest.mark.parametrize(
    ("told", "command", "decision"),
    [
        (session(), TitleSession(title="Trip"), titled("Trip")),
        (session(titled("Trip")), TitleSession(title="Rome"), titled("Rome")),
        (session(titled("Trip")), TitleSession(title="Trip"), None),
        (session(), DeleteSession(), GONE),
        (session(titled("Trip")), DeleteSession(), GONE),
        (session(GONE), DeleteSession(), None),
    ],
)
def test_a_wish_gives_one_fact_or_nothing_where_it_is_true_already(
    told: Session, command: SessionCommand, decision: SessionFact | None
) -> None:
    assert wish(command, told) == decision


@pytest.mark.parametrize(
    ("told", "command", "newest"),
    [
        (session(), TitleSession(title="Trip"), 0),
        (session(), DeleteSession(), 0),
        (session(GONE), TitleSession(title="Trip"), 5),
        (session(titled("a"), GONE), TitleSession(title="Trip"), 15),
    ],
)
def test_a_session_that_no_task_names_or_that_was_deleted_is_not_there(
    told: Session, command: SessionCommand, newest: int
) -> None:
    decision = wish(command, told, newest=newest)
    assert isinstance(decision, Rejected)
    assert decision.reason == "not_found"


def test_a_task_after_the_deletion_begins_a_session_anew() -> None:
    told = session(titled("Trip"), GONE)
    assert wish(TitleSession(title="Trip"), told, newest=21) == titled("Trip")
    assert wish(DeleteSession(), told, newest=21) == GONE


def test_a_repeated_key_changes_nothing() -> None:
    told = session(titled("Trip"), key="k1")
    assert wish(TitleSession(title="Rome", key="k1"), told) is None
    assert wish(TitleSession(title="Rome", key="k2"), told) == titled("Rome")


@pytest.mark.parametrize("command", [TitleSession(title="Trip"), DeleteSession()])
def test_a_session_that_a_newer_release_wrote_to_is_left_alone(command: SessionCommand) -> None:
    told = session(UnknownFact(tag="session.shared", fields={"with": "bob"}))
    assert told.unknown == "session.shared"
    decision = wish(command, told)
    assert isinstance(decision, Rejected)
    assert decision.reason == "written_by_newer_release"


def test_the_tags_of_a_sessions_facts_never_change() -> None:
    assert [tag_of(SessionTitled(title="")), tag_of(SessionDeleted())] == ["session.titled", "session.deleted"]
