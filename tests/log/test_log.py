"""The log's contract: one suite, which the log in memory and the one on JetStream both pass."""

import asyncio
import hashlib
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from eventstore import codec
from eventstore.events import Owner, TaskId, UnknownFact
from eventstore.log import (
    BadSubject,
    EventLog,
    LogUnavailable,
    Recorded,
    WrongExpectedSequence,
    subjects_about,
    task_subject,
)
from tests.log.logs import ANN, SOON_S, Ear, created, grow, new_task, record_of, said, write_against_others

EARLY, LATE = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


async def test_an_absent_task_has_no_last_sequence_and_no_records(log: EventLog):
    assert await log.last(ANN, new_task()) == 0
    assert await log.read(ANN, new_task()) == []
    assert await log.last_sequence() == 0


async def test_what_is_appended_is_read_back_byte_for_byte(log: EventLog):
    task = new_task()
    record = record_of(created())
    appended = await log.append(ANN, task, record, 0)
    assert (appended.owner, appended.task_id, appended.record) == (ANN, task, record)
    assert appended.stored == codec.encode(record)
    (read,) = await log.read(ANN, task)
    assert (read.sequence, read.owner, read.task_id, read.record, read.stored, read.sha256) == (
        appended.sequence,
        ANN,
        task,
        record,
        appended.stored,
        hashlib.sha256(appended.stored).hexdigest(),
    )


async def test_each_append_expects_the_one_before(log: EventLog):
    task = new_task()
    history = await grow(log, task, 5)
    assert [one.record.version for one in history] == [1, 2, 3, 4, 5]
    assert await log.last(ANN, task) == history[-1].sequence == await log.last_sequence()
    assert [one.stored for one in await log.read(ANN, task)] == [one.stored for one in history]


async def test_a_second_writer_is_told_what_came_first(log: EventLog):
    task = new_task()
    (first,) = await grow(log, task, 1)
    await grow(log, new_task(), 3)
    winner = await log.append(ANN, task, record_of(said("the winner"), first), first.sequence)
    with pytest.raises(WrongExpectedSequence) as told:
        await log.append(ANN, task, record_of(said("the loser"), first), first.sequence)
    assert (told.value.subject, told.value.expected) == (task_subject(ANN, task), first.sequence)
    assert told.value.found == winner.sequence
    assert [one.sequence for one in await log.read(ANN, task)] == [first.sequence, winner.sequence]


async def test_a_task_can_be_created_once(log: EventLog):
    task = new_task()
    (first,) = await grow(log, task, 1)
    with pytest.raises(WrongExpectedSequence) as told:
        await log.append(ANN, task, record_of(created("another")), 0)
    assert told.value.found == first.sequence


async def test_an_append_after_a_record_that_is_not_there_is_refused(log: EventLog):
    task = new_task()
    with pytest.raises(WrongExpectedSequence) as told:
        await log.append(ANN, task, record_of(created()), 7)
    assert (told.value.found, await log.last(ANN, task)) == (0, 0)
    (first,) = await grow(log, task, 1)
    with pytest.raises(WrongExpectedSequence) as told:
        await log.append(ANN, task, record_of(said(), first), first.sequence + 7)
    assert (told.value.found, await log.last(ANN, task)) == (first.sequence, first.sequence)


async def test_the_same_record_again_is_the_one_that_is_there(log: EventLog):
    task = new_task()
    record = record_of(created())
    first = await log.append(ANN, task, record, 0)
    second = await log.append(ANN, task, record_of(said(), first), first.sequence)
    again = await log.append(ANN, task, record, 0)
    assert (again.sequence, again.stored) == (first.sequence, first.stored)
    assert await log.last(ANN, task) == second.sequence


async def test_two_owners_tasks_are_strangers(log: EventLog):
    task = new_task()
    await grow(log, task, 2)
    assert await log.read(Owner("bob"), task) == []
    assert await log.last(Owner("bob"), task) == 0
    await log.append(Owner("bob"), task, record_of(created()), 0)
    assert len(await log.read(ANN, task)) == 2


async def test_a_history_is_read_from_any_record_on_and_to_any_length(log: EventLog):
    task = new_task()
    await grow(log, new_task(), 2)
    sequences = [one.sequence for one in await grow(log, task, 6)]

    async def read(after: int, limit: int | None = None) -> list[int]:
        return [one.sequence for one in await log.read(ANN, task, after=after, limit=limit)]

    assert await read(after=sequences[1]) == sequences[2:]
    assert await read(after=sequences[1], limit=3) == sequences[2:5]
    assert await read(after=sequences[1] - 1, limit=1) == sequences[1:2]
    assert await read(after=0, limit=100) == sequences
    assert await read(after=0, limit=0) == []
    assert await read(after=sequences[-1]) == []
    assert await read(after=sequences[-1] + 1000) == []


async def test_a_long_history_comes_whole_and_in_order(log: EventLog):
    task, other = new_task(), new_task()
    history = [*await grow(log, task, 250)]
    await grow(log, other, 5)
    history += await grow(log, task, 350, history[-1])
    read = await log.read(ANN, task)
    assert [one.stored for one in read] == [one.stored for one in history]
    assert [one.record.version for one in await log.read(ANN, task, after=read[9].sequence, limit=512)] == [
        *range(11, 523)
    ]


async def test_a_tail_from_now_hears_only_what_comes(log: EventLog):
    ear = Ear()
    before = await grow(log, new_task(), 3)
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    assert tail.position == before[-1].sequence
    after = await grow(log, new_task(), 3)
    await ear.has(3)
    assert [(one.sequence, one.subject, one.stored) for one in ear.arrivals] == [
        (one.sequence, task_subject(one.owner, one.task_id), one.stored) for one in after
    ]
    assert (tail.position, ear.resets) == (after[-1].sequence, 0)


async def test_a_tail_from_the_beginning_replays_and_goes_on_live(log: EventLog):
    ear = Ear()
    history = await grow(log, new_task(), 300)
    tail = await log.tail(ear.on_arrival, ear.on_reset, after=0)
    history += await grow(log, new_task(), 50)
    await tail.reach(history[-1].sequence)
    assert [one.stored for one in ear.arrivals] == [one.stored for one in history]
    assert ear.sequences == [one.sequence for one in history]


async def test_a_tail_begins_where_it_is_told(log: EventLog):
    ear = Ear()
    history = await grow(log, new_task(), 10)
    tail = await log.tail(ear.on_arrival, ear.on_reset, after=history[3].sequence)
    await tail.catch_up()
    assert ear.sequences == [one.sequence for one in history[4:]]
    assert (tail.lag, tail.proven) == (0, True)


async def test_whoever_waits_for_a_sequence_is_woken_when_it_came(log: EventLog):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    waiting = [asyncio.ensure_future(tail.reach(sequence)) for sequence in (3, 1, 2)]
    history = await grow(log, new_task(), 2)
    await asyncio.gather(waiting[1], waiting[2])
    assert not waiting[0].done()
    await grow(log, new_task(), 1, None)
    await waiting[0]
    await tail.reach(history[0].sequence)
    assert ear.sequences == [1, 2, 3]


async def test_after_catching_up_nothing_acknowledged_before_is_missing(log: EventLog):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)

    async def write_and_catch_up() -> bool:
        (appended,) = await grow(log, new_task(), 1)
        await tail.catch_up()
        return appended.sequence in ear.sequences

    assert all(await asyncio.gather(*[write_and_catch_up() for _ in range(50)]))


async def test_a_reader_that_fails_on_one_record_still_hears_the_next(log: EventLog):
    heard = Ear()

    def on_arrival(arrival: object) -> None:
        heard.arrivals.append(arrival)  # pyright: ignore[reportArgumentType]  # an Arrival, by the port's word
        raise ValueError("a bug in a reader")

    tail = await log.tail(on_arrival, heard.on_reset)
    await grow(log, new_task(), 3)
    await tail.catch_up()
    assert heard.sequences == [1, 2, 3]


async def test_whoever_waits_on_a_tail_that_is_closed_is_told(log: EventLog):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    waiting = asyncio.ensure_future(tail.reach(1))
    await asyncio.sleep(0)
    await tail.close()
    with pytest.raises(LogUnavailable):
        await waiting
    with pytest.raises(LogUnavailable):
        await tail.reach(1)
    await tail.close()


async def test_of_many_writers_on_one_task_each_writes_once(log: EventLog):
    task = new_task()
    async with asyncio.timeout(SOON_S), asyncio.TaskGroup() as writers:
        for writer in range(16):
            writers.create_task(write_three_times(log, task, f"{writer}"))
    history = await log.read(ANN, task)
    assert [one.record.version for one in history] == [*range(1, 49)]
    assert sorted(text_of(one.record.fact) for one in history) == sorted(f"{w}.{n}" for w in range(16) for n in "012")
    for before, one in pairwise(history):
        assert one.record.previous == before.sha256


async def write_three_times(log: EventLog, task: TaskId, name: str) -> None:
    for n in range(3):
        await write_against_others(log, task, f"{name}.{n}")


def text_of(fact: object) -> str:
    return str(getattr(fact, "text", ""))


async def test_many_tasks_are_written_at_once(log: EventLog):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    tasks = [new_task() for _ in range(300)]
    histories = await asyncio.gather(*[grow(log, task, 5) for task in tasks])
    assert sorted(one.sequence for history in histories for one in history) == [*range(1, 1501)]
    await tail.catch_up()
    assert ear.sequences == [*range(1, 1501)]
    by_sequence = {one.sequence: one.stored for history in histories for one in history}
    assert [by_sequence[one.sequence] for one in ear.arrivals] == [one.stored for one in ear.arrivals]


@pytest.mark.parametrize("size", [300 * 1024, 5 * 1024 * 1024])
async def test_what_is_too_big_for_a_message_lies_in_a_blob(log: EventLog, size: int):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    task = new_task()
    record = record_of(created("x" * size))
    appended = await log.append(ANN, task, record, 0)
    assert len(appended.stored) < 2048
    reference = appended.record.blob
    assert reference is not None
    assert (reference.name, reference.fields) == (record.record_id, ("title",))
    content = await log.blobs.get(reference.name)
    assert content is not None
    assert (len(content), hashlib.sha256(content).hexdigest()) == (reference.bytes, reference.sha256)
    assert not isinstance(appended.record.fact, UnknownFact)
    assert codec.unpack(appended.record.fact, content) == record.fact
    (read,) = await log.read(ANN, task)
    await tail.catch_up()
    assert read.stored == appended.stored == ear.arrivals[0].stored
    again = await log.append(ANN, task, record, 0)
    assert again.sequence == appended.sequence


async def test_a_fact_of_a_newer_release_is_kept_read_and_heard_as_it_is(log: EventLog):
    ear = Ear()
    tail = await log.tail(ear.on_arrival, ear.on_reset)
    task = new_task()
    newer = codec.encode(record_of(created())).replace(b'"task.created"', b'"task.dreamt"')
    appended = await log.append(ANN, task, codec.decode(newer), 0)
    (read,) = await log.read(ANN, task)
    assert isinstance(read.record.fact, UnknownFact)
    assert (read.record.fact.tag, read.record.fact.fields["title"]) == ("task.dreamt", "a task")
    assert read.stored == appended.stored
    after = await log.append(ANN, task, record_of(said(), appended), appended.sequence)
    await tail.catch_up()
    assert [one.stored for one in ear.arrivals] == [appended.stored, after.stored]


@pytest.mark.parametrize(
    ("owner", "task"),
    [
        (ANN, "task_*"),
        (ANN, "task_01890a5d-ac96-774b-bcce-b302099a8057.more"),
        (ANN, ">"),
        (ANN, ""),
        ("", "task_01890a5d-ac96-774b-bcce-b302099a8057"),
        ("*", "task_01890a5d-ac96-774b-bcce-b302099a8057"),
        ("a.b", "task_01890a5d-ac96-774b-bcce-b302099a8057"),
        ("ann\r\n", "task_01890a5d-ac96-774b-bcce-b302099a8057"),
    ],
)
async def test_words_that_would_be_wildcards_never_become_a_subject(log: EventLog, owner: str, task: str):
    with pytest.raises(BadSubject):
        await log.append(Owner(owner), TaskId(task), record_of(created()), 0)
    with pytest.raises(BadSubject):
        await log.read(Owner(owner), TaskId(task))
    with pytest.raises(BadSubject):
        await log.last(Owner(owner), TaskId(task))
    assert await log.last_sequence() == 0


async def test_a_read_is_bounded_in_bytes_and_gives_one_record_at_least(log: EventLog):
    task, grown = new_task(), list[Recorded]()
    for n in range(12):
        fact = said("x" * 200_000) if n else created()
        after = grown[-1] if grown else None
        grown.append(await log.append(ANN, task, record_of(fact, after), after.sequence if after else 0))
    read = await log.read(ANN, task, max_bytes=1024 * 1024)
    assert 1 <= len(read) < 12
    assert [one.stored for one in read] == [one.stored for one in grown[: len(read)]]
    assert len(await log.read(ANN, task, after=grown[1].sequence, limit=1, max_bytes=1)) == 1


async def test_a_record_is_found_by_its_sequence(log: EventLog):
    first, second = await grow(log, new_task(), 2)
    found = await log.at(second.sequence)
    assert found is not None
    assert (found.sequence, found.stored) == (second.sequence, second.stored)
    assert await log.at(second.sequence + 1) is None
    assert first.sequence == 1


async def test_the_first_record_since_a_moment_is_found_or_the_next(log: EventLog):
    assert await log.first_since(EARLY) == 1
    await grow(log, new_task(), 3)
    between = datetime.now(UTC)
    await grow(log, new_task(), 3)
    assert [await log.first_since(moment) for moment in (EARLY, between, LATE)] == [1, 4, 7]


async def test_a_blob_is_found_with_the_record_that_refers_to_it(log: EventLog):
    await grow(log, new_task(), 3)
    task = new_task()
    large = await log.append(ANN, task, record_of(created("x" * 300_000)), 0)
    (small,) = await grow(log, task, 1, large)
    found = await log.blob_of(large.record.record_id)
    assert found is not None
    record, content = found
    assert (record.sequence, record.stored) == (large.sequence, large.stored)
    assert codec.field_of(content, "title") == "x" * 300_000
    assert await log.blob_of(small.record.record_id) is None
    await log.blobs.put("an orphan", b"{}", subject=record.subject, expected=large.sequence)
    assert await log.blob_of("an orphan") is None


async def test_owners_and_tasks_make_filters(log: EventLog):
    bob = Owner("bob")
    tasks = [new_task() for _ in range(3)]
    for owner, task in zip((ANN, bob, bob), tasks, strict=True):
        await log.append(owner, task, record_of(created()), 0)
    asked: list[tuple[set[Owner], set[TaskId], list[int]]] = [
        (set(), set(), [1, 2, 3]),
        ({ANN, bob}, set(), [1, 2, 3]),
        ({bob}, set(), [2, 3]),
        ({bob}, set(tasks[:2]), [2]),
        (set(), set(tasks[1:]), [2, 3]),
        ({ANN, bob}, set(tasks[:2]), [1, 2]),
    ]
    for owners, wanted, sequences in asked:
        replay = await log.replay(after=0, subjects=subjects_about(owners, wanted))
        taken = [arrival.sequence for arrival in await replay.take(3, within_s=SOON_S, linger_s=0.1)]
        assert taken == sequences
        await replay.close()
    with pytest.raises(BadSubject):
        subjects_about({Owner("*")}, set())
    with pytest.raises(BadSubject):
        subjects_about(set(), {TaskId(">")})
