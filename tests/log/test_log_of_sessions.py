"""The log's contract for sessions, which the log in memory and the one on JetStream both pass."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore import codec
from eventstore.connection import NatsAddress
from eventstore.events import Owner, SessionDeleted, SessionTitled, UnknownFact
from eventstore.log import (
    MAX_SESSION_ID,
    SESSION_WORD,
    BadSubject,
    EventLog,
    OutcomeUnknown,
    SessionRecorded,
    WrongExpectedSequence,
    session_of_subject,
    session_subject,
    session_word,
    subjects_of,
)
from eventstore.server import EmbeddedServer
from tests.log.logs import ANN, SOON_S, Ear, grow, jetstream, new_task, session_record_of, stopped

BOB = Owner("bob")


async def entitle(log: EventLog, session_id: str, *titles: str, owner: Owner = ANN) -> list[SessionRecorded]:
    """Append these titles, each acknowledged before the next."""
    written = await log.read_session(owner, session_id)
    for title in titles:
        last = written[-1] if written else None
        record = session_record_of(SessionTitled(title=title, session_id=session_id), last)
        written.append(await log.append_session(owner, session_id, record, last.sequence if last else 0))
    return written


async def test_a_session_without_facts_has_no_records(log: EventLog):
    assert await log.read_session(ANN, "s1") == []


async def test_what_is_appended_to_a_session_is_read_back(log: EventLog):
    record = session_record_of(SessionTitled(title="Trip", session_id="s1"))
    appended = await log.append_session(ANN, "s1", record, 0)
    assert (appended.owner, appended.word, appended.record) == (ANN, "s1", record)
    assert await log.read_session(ANN, "s1") == [appended]
    arrival = await log.at(appended.sequence)
    assert arrival is not None
    assert (arrival.subject, arrival.stored) == ("sessions.ann.s1", codec.encode(record))
    assert arrival.sha256 == appended.sha256


async def test_a_sessions_records_are_read_from_any_on(log: EventLog):
    await entitle(log, "other", "x")
    written = await entitle(log, "s1", *"abc")
    assert [one.record.version for one in written] == [1, 2, 3]
    for n, one in enumerate(written):
        assert await log.read_session(ANN, "s1", after=one.sequence) == written[n + 1 :]


async def test_tasks_and_sessions_and_owners_are_strangers(log: EventLog):
    await grow(log, new_task(), 2)
    hers, his = await entitle(log, "s1", "hers"), await entitle(log, "s1", "his", owner=BOB)
    assert await log.read_session(ANN, "s1") == hers
    assert await log.read_session(BOB, "s1") == his
    assert await log.read_session(BOB, "s2") == []


async def test_a_second_writer_of_a_session_is_told_what_came_first(log: EventLog):
    (first,) = await entitle(log, "s1", "first")
    winner = await log.append_session(ANN, "s1", session_record_of(SessionDeleted(), first), first.sequence)
    with pytest.raises(WrongExpectedSequence) as told:
        await log.append_session(ANN, "s1", session_record_of(SessionTitled(title="late"), first), first.sequence)
    assert (told.value.subject, told.value.expected) == ("sessions.ann.s1", first.sequence)
    assert told.value.found == winner.sequence
    with pytest.raises(WrongExpectedSequence):
        await log.append_session(ANN, "s2", session_record_of(SessionTitled(title="x")), first.sequence)
    assert await log.read_session(ANN, "s1") == [first, winner]


async def test_the_same_record_of_a_session_again_is_the_one_that_is_there(log: EventLog):
    record = session_record_of(SessionTitled(title="Trip"))
    first = await log.append_session(ANN, "s1", record, 0)
    await entitle(log, "s1", "Rome")
    assert await log.append_session(ANN, "s1", record, 0) == first
    assert len(await log.read_session(ANN, "s1")) == 2


async def test_of_many_writers_on_one_session_each_writes_once(log: EventLog):
    async def write(title: str) -> None:
        while True:
            written = await log.read_session(ANN, "s1")
            last = written[-1] if written else None
            record = session_record_of(SessionTitled(title=title), last)
            try:
                await log.append_session(ANN, "s1", record, last.sequence if last else 0)
            except WrongExpectedSequence:
                continue
            return

    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as writers:
        for title in "abcdefgh":
            writers.create_task(write(title))
    written = await log.read_session(ANN, "s1")
    assert [one.record.version for one in written] == [*range(1, 9)]
    assert {one.record.fact for one in written} == {SessionTitled(title=title) for title in "abcdefgh"}
    assert [one.record.previous for one in written] == ["", *(one.sha256 for one in written[:-1])]


async def test_a_session_fact_of_a_newer_release_is_kept_and_read_as_it_is(log: EventLog):
    newer = codec.encode(session_record_of(SessionTitled(title="x"))).replace(b"session.titled", b"session.shared")
    await log.append_session(ANN, "s1", codec.decode_session(newer), 0)
    (read,) = await log.read_session(ANN, "s1")
    assert read.record.fact == UnknownFact(tag="session.shared", fields={"title": "x"})


async def test_a_tail_and_an_owners_replay_bring_sessions_in_their_place(log: EventLog):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    (task,) = await grow(log, new_task(), 1)
    (hers,) = await entitle(log, "s1", "hers")
    await entitle(log, "s1", "his", owner=BOB)
    await tail.catch_up()
    assert ear.sequences == [1, 2, 3]
    assert codec.session_recorded(ear.arrivals[1]) == hers
    replay = await log.replay(after=0, owner=ANN)
    taken = await replay.take(3, within_s=SOON_S, linger_s=0.1)
    assert [one.sequence for one in taken] == [task.sequence, hers.sequence]
    await replay.close()


@pytest.mark.parametrize("session_id", ["a.b", "*", ">", "two words", "a\0b\r\n", "x-1", "日本", "s" * MAX_SESSION_ID])
async def test_whatever_a_session_is_called_it_has_a_subject_of_its_own(log: EventLog, session_id: str):
    written = await entitle(log, session_id, "Trip", "Rome")
    assert await log.read_session(ANN, session_id) == written
    assert SESSION_WORD.fullmatch(written[0].word)
    assert await log.read_session(ANN, written[0].word if written[0].word != session_id else "other") == []


@pytest.mark.parametrize("session_id", ["", "s" * (MAX_SESSION_ID + 1), "日" * 683, "\ud800"])
async def test_what_can_not_be_a_session_id_is_a_named_error(log: EventLog, session_id: str):
    with pytest.raises(BadSubject, match="a session id"):
        await log.append_session(ANN, session_id, session_record_of(SessionDeleted()), 0)
    with pytest.raises(BadSubject, match="a session id"):
        await log.read_session(ANN, session_id)
    with pytest.raises(BadSubject, match="not an owner"):
        await log.read_session(Owner("*"), "s1")
    assert await log.last_sequence() == 0


@given(st.lists(st.text(min_size=1, max_size=150), min_size=2, max_size=5, unique=True))
def test_no_two_sessions_share_a_subject(session_ids: list[str]):
    subjects = [session_subject(ANN, one) for one in session_ids]
    assert len(set(subjects)) == len(subjects)
    assert [session_of_subject(one) for one in subjects] == [(ANN, session_word(one)) for one in session_ids]
    # What a word stands for is not that word's own.
    assert not {session_word(one) for one in session_ids} & {
        session_word(session_word(one)) for one in session_ids if session_word(one) != one
    }
    assert all(len(one.split(".")) == 3 for one in subjects)
    assert subjects_of(ANN)[1] == "sessions.ann.>"


async def test_an_append_to_a_session_that_nobody_answers_is_of_unknown_outcome(server: EmbeddedServer):
    async with jetstream(server.address, patience_s=0.5) as log:
        record = session_record_of(SessionTitled(title="Trip"))
        with stopped(server), pytest.raises(OutcomeUnknown):
            await log.append_session(ANN, "s1", record, 0)
        again = await log.append_session(ANN, "s1", record, 0)
        assert await log.read_session(ANN, "s1") == [again]


async def test_what_one_process_wrote_to_a_session_another_reads(nats_address: NatsAddress):
    async with jetstream(nats_address) as one, jetstream(nats_address) as other:
        written = await entitle(one, "s1", "Trip", "Rome")
        assert await other.read_session(ANN, "s1") == written
