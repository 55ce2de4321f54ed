"""The verification of a log: what is whole passes, and whatever was done to it is named."""

import asyncio
import hashlib
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from app.checkpoints import Checkpoints
from eventstore.codec import decode_checkpoint, encode
from eventstore.events import SessionTitled, TaskFact
from eventstore.log import CHECKPOINTS, Arrival, task_subject
from eventstore.memory import MemoryLog
from projections.audit import Verification
from projections.proof import BadKey, Leaves, leaves_in, named, public_key, signed
from projections.sources import LogSource, verify
from tests.given import BEGIN, cancelled, completed, started
from tests.projections.lives import ANN, BOB, Scribe, born, numbered

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = named(KEY.public_key())
LIVES: tuple[tuple[TaskFact, ...], ...] = (
    (born("a"),),
    (born("b"), started(), completed()),
    (born("c"), cancelled()),
    (born("d"), started()),
)
MOVES = st.lists(st.sampled_from([0, 1, 2, 3, "sign"]), min_size=1, max_size=12)


async def signed_log(moves: list[int | str]) -> list[Arrival]:
    """Tasks, written side by side, with checkpoints where they are wanted and at the end."""
    log = MemoryLog()
    scribe, checkpoints = Scribe(log), Checkpoints(log, KEY)
    left = [(number, list(LIVES[move])) for number, move in enumerate(moves) if isinstance(move, int)]
    signs = moves.count("sign")
    while any(facts for _, facts in left):
        for number, facts in left:
            if facts:
                owner = (ANN, BOB)[number % 2]
                await scribe.write(owner, numbered(number), facts.pop(0), at=BEGIN + timedelta(seconds=number))
                if number % 3 == 0:
                    await scribe.session(owner, f"s {number}", SessionTitled(title="Trip"))
        if signs:
            signs -= 1
            await checkpoints.write()
    await checkpoints.write()
    await checkpoints.close()
    await log.close()
    return log.arrivals


def verification_of(
    arrivals: list[Arrival], *, whole: bool = True, keys: frozenset[str] = frozenset(), last: int | None = None
) -> Verification:
    verification = Verification(whole=whole, keys=keys)
    for arrival in arrivals:
        verification.take(arrival)
        if arrival.subject == CHECKPOINTS:
            verification.checkpoint(arrival, leaves_in(arrival, None))
    verification.finish(arrivals[-1].sequence if last is None and arrivals else last or 0)
    return verification


def named_in(verification: Verification) -> set[int]:
    return {fault.sequence for fault in verification.faults}


def written(moves: list[int | str]) -> list[Arrival]:
    return asyncio.run(signed_log(moves))


def changed(arrival: Arrival) -> Arrival:
    """Another record in its place, as whoever can write into the store would write it: whole, and readable."""
    stored = arrival.stored.replace(b'"actor":"test"', b'"actor":"nobody"').replace(b'"digest":"', b'"digest":"0')
    assert stored != arrival.stored
    return Arrival(arrival.sequence, arrival.subject, stored)


def renumbered(arrivals: list[Arrival]) -> list[Arrival]:
    return [Arrival(number, one.subject, one.stored) for number, one in enumerate(arrivals, 1)]


@settings(max_examples=60, deadline=None)
@given(moves=MOVES)
def test_a_log_that_nobody_touched_has_no_faults_and_is_covered_to_its_last_checkpoint(moves: list[int | str]):
    arrivals = written(moves)
    verification = verification_of(arrivals, keys=frozenset({NAME}))
    assert verification.faults == []
    assert verification.records == len(arrivals)
    if arrivals:
        assert verification.covered.sequence == arrivals[-1].sequence - 1
        assert verification.covered.keys == {NAME}


Tamper = Callable[[list[Arrival], int, int], tuple[list[Arrival], set[int]]]


def a_record_changed(arrivals: list[Arrival], at: int, other: int) -> tuple[list[Arrival], set[int]]:
    del other
    return [*arrivals[:at], changed(arrivals[at]), *arrivals[at + 1 :]], {at + 1}


def a_record_removed(arrivals: list[Arrival], at: int, other: int) -> tuple[list[Arrival], set[int]]:
    del other
    return [*arrivals[:at], *arrivals[at + 1 :]], {at + 1}


def a_record_removed_and_the_rest_written_anew(
    arrivals: list[Arrival], at: int, other: int
) -> tuple[list[Arrival], set[int]]:
    del other
    return renumbered([*arrivals[:at], *arrivals[at + 1 :]]), {at + 1}


def two_swapped(arrivals: list[Arrival], at: int, other: int) -> tuple[list[Arrival], set[int]]:
    swapped = list(arrivals)
    swapped[at], swapped[other] = swapped[other], swapped[at]
    return renumbered(swapped), {at + 1, other + 1} if at != other else set()


def a_whole_task_removed(arrivals: list[Arrival], at: int, other: int) -> tuple[list[Arrival], set[int]]:
    del other
    gone = {one.sequence for one in arrivals if one.subject == arrivals[at].subject}
    # Neighbours that are missing are named as one stretch, by its first.
    return [one for one in arrivals if one.sequence not in gone], {min(gone)}


@pytest.mark.parametrize(
    "tamper",
    [
        a_record_changed,
        a_record_removed,
        a_record_removed_and_the_rest_written_anew,
        two_swapped,
        a_whole_task_removed,
    ],
)
@settings(max_examples=60, deadline=None)
@given(moves=MOVES.filter(lambda moves: any(move != "sign" for move in moves)), at=st.integers(0), other=st.integers(0))
def test_what_was_done_to_a_signed_record_is_named(tamper: Tamper, moves: list[int | str], at: int, other: int):
    arrivals = written(moves)
    facts = [place for place, one in enumerate(arrivals) if one.subject != CHECKPOINTS]
    tampered, sequences = tamper(arrivals, facts[at % len(facts)], facts[other % len(facts)])
    verification = verification_of(tampered, last=arrivals[-1].sequence)
    assert sequences <= named_in(verification)
    assert bool(verification.fault_count) == (tampered != arrivals and bool(sequences))


@pytest.mark.parametrize("place", [0, 1])
def test_a_checkpoint_that_was_changed_or_taken_away_is_named(place: int):
    arrivals = written([1, "sign", 2, 1])
    at = [one.sequence for one in arrivals if one.subject == CHECKPOINTS][place] - 1
    assert at + 1 in named_in(verification_of([*arrivals[:at], changed_words(arrivals[at]), *arrivals[at + 1 :]]))
    tampered = [*arrivals[:at], *arrivals[at + 1 :]]
    assert at + 1 in named_in(verification_of(tampered, last=arrivals[-1].sequence))


def changed_words(checkpoint: Arrival) -> Arrival:
    return Arrival(checkpoint.sequence, checkpoint.subject, checkpoint.stored.replace(b'"digest":"', b'"digest":"0', 1))


def test_a_last_record_that_no_checkpoint_covers_can_be_changed_and_is_not_said_to_be_covered():
    arrivals = [one for one in written([0, 1]) if one.subject != CHECKPOINTS]
    verification = verification_of([*arrivals[:-1], changed(arrivals[-1])])
    assert verification.faults == []
    assert verification.covered.sequence == 0


def test_another_key_than_those_given_signs_nothing():
    arrivals = written([1])
    other = named(Ed25519PrivateKey.generate().public_key())
    verification = verification_of(arrivals, keys=frozenset({other}))
    assert named_in(verification) == {arrivals[-1].sequence}
    assert verification.covered.sequence == 0


def test_a_checkpoint_that_somebody_holds_shows_that_the_log_was_written_anew():
    before, anew = written([1, 2, 1]), written([2, 2, 2])
    held = before[-1]
    verification = verification_of(anew)
    assert verification.faults == []
    verification.held(held, next((one for one in anew if one.sequence == held.sequence), None))
    assert named_in(verification) == {held.sequence}
    verification = verification_of(before)
    verification.held(held, before[held.sequence - 1])
    assert verification.faults == []


def test_one_tasks_records_are_looked_for_among_the_leaves():
    arrivals = written([1, 0, 1])
    subject = task_subject(ANN, numbered(0))
    mine = [one for one in arrivals if one.subject in (subject, CHECKPOINTS)]
    assert verification_of(mine, whole=False).faults == []
    last = max(at for at, one in enumerate(mine) if one.subject == subject)
    tampered = [*mine[:last], changed(mine[last]), *mine[last + 1 :]]
    assert named_in(verification_of(tampered, whole=False)) == {mine[last].sequence}


def test_what_follows_an_end_is_named():
    arrivals = written([1])
    after_end = Arrival(arrivals[-1].sequence + 1, arrivals[0].subject, arrivals[1].stored)
    (fault,) = verification_of([*arrivals, after_end]).faults
    assert (fault.sequence, fault.what) == (after_end.sequence, "it comes after its task's end")


def test_bytes_that_are_no_record_are_named():
    arrivals = written([0, 0])
    arrivals[1] = Arrival(2, arrivals[1].subject, b"\xff not a record")
    faults = verification_of(arrivals).faults
    assert faults[0].sequence == 2
    assert "it can't be read" in faults[0].what


async def test_a_log_is_walked_with_its_blobs():
    log = MemoryLog()
    scribe, checkpoints = Scribe(log), Checkpoints(log, KEY)
    await scribe.task(born("a", input="x" * 400_000), started(), completed())
    await checkpoints.write()
    told: list[tuple[int, int]] = []
    verification = Verification(whole=True)
    await verify(LogSource(log), verification, lambda at, end: told.append((at, end)))
    assert (verification.faults, told[-1]) == ([], (4, 4))
    (blob,) = log.blobs.names
    await log.blobs.put(blob, b"something else")
    verification = Verification(whole=True)
    await verify(LogSource(log), verification, lambda at, end: None)
    assert [(one.sequence, one.what) for one in verification.faults] == [(1, f"its blob {blob} was changed")]
    log.blobs.forget(blob)
    verification = Verification(whole=True)
    await verify(LogSource(log), verification, lambda at, end: None)
    assert [(one.sequence, one.what) for one in verification.faults] == [(1, f"its blob {blob} is missing")]
    await checkpoints.close()
    await log.close()


@pytest.mark.parametrize("name", ["", "ed25519:", "ed25519:AAAA", "ed25519:é", "rsa:AAAA"])
def test_what_is_no_key_is_refused(name: str):
    with pytest.raises(BadKey):
        public_key(name)


def test_a_checkpoint_put_before_what_it_signs_covers_nothing():
    arrivals = written([1, 0])
    subject = task_subject(ANN, numbered(0))
    mine = [changed(one) for one in arrivals if one.subject == subject]
    moved = Arrival(1, CHECKPOINTS, arrivals[-1].stored)
    forged = [moved, *(Arrival(number, one.subject, one.stored) for number, one in enumerate(mine, 2))]
    for whole in (True, False):
        verification = verification_of(forged, whole=whole)
        assert named_in(verification) >= {1}
        assert verification.covered.sequence == 0


def test_a_checkpoint_that_can_not_be_read_is_named():
    arrivals = written([1])
    for name, other in ((b'"signature":', b'"sig":'), (b'"log.checkpoint"', b'"log.whatever"')):
        last = Arrival(arrivals[-1].sequence, CHECKPOINTS, arrivals[-1].stored.replace(name, other))
        assert named_in(verification_of([*arrivals[:-1], last])) == {last.sequence}


def test_a_key_that_signed_nothing_is_a_fault():
    unsigned = [one for one in written([0, 1]) if one.subject != CHECKPOINTS]
    assert verification_of(unsigned).faults == []
    assert verification_of(unsigned, keys=frozenset({NAME})).fault_count == 1


def test_a_checkpoint_of_a_stranger_is_named_and_the_later_ones_go_on():
    arrivals = written([1])
    stranger = signed(Ed25519PrivateKey.generate(), "x", BEGIN, "checkpoints", arrivals[-1], Leaves(0))
    between = Arrival(arrivals[-1].sequence + 1, CHECKPOINTS, encode(stranger))
    verification = verification_of([*arrivals, between], keys=frozenset({NAME}))
    assert named_in(verification) == {between.sequence}
    assert verification.covered.sequence == arrivals[-1].sequence - 1


def test_after_a_change_of_key_the_one_that_is_missing_is_named():
    arrivals = written([0, 1])
    other = Ed25519PrivateKey.generate()
    leaves = Leaves(arrivals[-1].sequence - 1)
    leaves.add(CHECKPOINTS, arrivals[-1].sequence, hashlib.sha256(arrivals[-1].stored).digest())
    at = decode_checkpoint(arrivals[-1].stored).at
    record = signed(other, "x", at, "checkpoints", arrivals[-1], leaves)
    both = [*arrivals, Arrival(arrivals[-1].sequence + 1, CHECKPOINTS, encode(record))]
    assert verification_of(both, keys=frozenset({NAME, named(other.public_key())})).faults == []
    told = verification_of(both, keys=frozenset({named(other.public_key())})).faults
    hint = f"those before are signed by {NAME}: where the key was changed, give that one too"
    assert any(hint in fault.what for fault in told)


def test_a_gap_of_any_size_is_one_fault_and_takes_no_memory():
    arrivals = written([1])
    far = Arrival(10**15, arrivals[0].subject, arrivals[0].stored)
    assert arrivals[-1].sequence + 1 in named_in(verification_of([*arrivals, far]))
