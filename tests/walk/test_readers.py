"""Circles and the wheel: everybody hears all that was said since they came, once, in order; who is quiet is pinged."""

import asyncio
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.types import HTTPReceiveMessage, Receive, Scope, Send
from msgspec import Struct
from msgspec.structs import replace

from app import readers
from app.feed import REST, TaskStream
from app.readers import AT_ONCE, ENDED, LEFT, Circle, Paced, Reader, Said, Straight
from app.unwound import went_through
from app.wheel import ROUNDS, Wheel
from eventstore.codec import encode
from eventstore.events import Record, TaskCancelled, TaskFact
from eventstore.log import Recorded
from projections.task import INITIAL, Task
from tests.log.logs import ANN, SOON_S, new_task, until

TASK_ID = new_task()


class Plain(Struct, frozen=True):
    """Words that are the fact's number; of every third there are none."""

    def said(self, recorded: Recorded, task: Task) -> list[bytes]:
        del task
        number = recorded.sequence
        if number == 13:
            raise ValueError("no words for that")
        return [] if number % 3 == 0 else [b"%d" % number]


def fact(number: int, *, ending: bool = False) -> tuple[Recorded, Task]:
    """A fact of this number, and its task after it."""
    text: TaskFact = TaskCancelled(by="ann") if ending else TaskCancelled(by="bob")
    record = Record(
        version=number,
        at=datetime.now(UTC),
        actor="test",
        causation_id=None,
        correlation_id="c",
        previous="",
        record_id="r",
        fact=text,
    )
    recorded = Recorded(sequence=number, owner=ANN, task_id=TASK_ID, record=record, stored=encode(record))
    return recorded, replace(INITIAL, status="cancelled" if ending else "running")


class Heard(Reader):
    """Keeps all that it hears, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.writes = 0

    def hear(self, said: Said, at: float) -> None:
        """As the real ones: not when it is over."""
        if self.over.done():
            return
        self.said_at = at
        self.writes += 1
        self.pieces += said.pieces


def words_of(first: int, last: int) -> list[bytes]:
    """All that is said from this fact to that one."""
    return [b"%d" % number for number in range(first, last + 1) if number % 3]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@settings(max_examples=60, deadline=None)
@given(
    doings=st.lists(st.sampled_from(["say", "say", "join", "leave", "turn"]), max_size=40),
    at_once=st.integers(1, 4),
)
async def test_each_hears_all_from_its_coming_to_its_leaving_once_and_in_order(doings: list[str], at_once: int):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(readers, "AT_ONCE", at_once)
        circle, said = Circle(Plain()), 0
        there: dict[Heard, int] = {}
        left: list[tuple[Heard, int, int]] = []
        for doing in doings:
            match doing:
                case "say" if said < 12:
                    said += 1
                    circle.say(*fact(said))
                case "join":
                    there[(come := Heard())] = said + 1
                    circle.join(come)
                case "leave" if there:
                    gone, since = there.popitem()
                    circle.leave(gone)
                    gone.cut_off(LEFT)
                    left.append((gone, since, said))
                case _:
                    await turns(1)
        circle.say(*fact(said + 1, ending=True))
        async with asyncio.timeout(SOON_S):
            for reader in there:
                assert await reader.over == ENDED
        for reader, since in there.items():
            assert reader.pieces == words_of(since, said + 1)
        for reader, since, last in left:
            assert reader.pieces == words_of(since, last)[: len(reader.pieces)]


async def test_what_comes_together_is_one_write_and_a_large_circle_holds_nobody_up():
    circle = Circle(Plain())
    everybody = [Heard() for _ in range(AT_ONCE + 10)]
    for reader in everybody:
        circle.join(reader)
    for number in (1, 2, 4):
        circle.say(*fact(number))
    await turns(1)
    told = [reader for reader in everybody if reader.pieces]
    assert len(told) == AT_ONCE
    for number in (5, 7):
        circle.say(*fact(number))
    await turns(3)
    assert {tuple(reader.pieces) for reader in everybody} == {(b"1", b"2", b"4", b"5", b"7")}
    assert {reader.writes for reader in everybody} == {2}


async def test_a_fact_that_has_no_words_cuts_its_readers_and_harms_nobody_else():
    circle, reader = Circle(Plain()), Heard()
    circle.join(reader)
    circle.say(*fact(1))
    await turns(2)
    circle.say(*fact(13))
    assert await reader.over == "fault"
    circle.leave(reader)
    later = Heard()
    circle.join(later)
    circle.say(*fact(14))
    await turns(2)
    assert (reader.pieces, later.pieces) == ([b"1"], [b"14"])


class Broken(Reader):
    def hear(self, said: Said, at: float) -> None:
        raise RuntimeError("a socket that is closed")


async def test_a_reader_that_can_not_be_told_is_cut_and_all_others_hear():
    circle, wheel = Circle(Plain()), Wheel(b"ping", 0.05)
    everybody: list[Reader] = [Heard(), Broken(), Heard()]
    pinged: list[Reader] = [Broken(), Heard()]
    for reader in everybody:
        circle.join(reader)
    places = [(reader, wheel.add(reader)) for reader in pinged]
    for number in (1, 2):
        circle.say(*fact(number))
        await turns(2)
    assert [reader.pieces for reader in everybody if isinstance(reader, Heard)] == [[b"1", b"2"]] * 2
    assert await everybody[1].over == await pinged[0].over == "fault"
    for reader, place in places:
        if isinstance(reader, Heard):
            await until(lambda reader=reader: len(reader.pieces) >= 3)
        wheel.remove(reader, place)


class Deaf:
    """A line whose client takes nothing beyond so many bytes."""

    def __init__(self, room: int) -> None:
        self.waiting = 0
        self._room = room

    def write(self, chunk: bytes, /) -> None:
        self.waiting += len(chunk)

    @property
    def full(self) -> bool:
        return self.waiting > self._room

    def tell_of_end(self, on_end: object) -> None: ...


async def test_a_straight_reader_that_takes_nothing_is_cut_before_it_would_hold_more_than_it_may():
    line = Deaf(10)
    reader = Straight(line, 100)
    for _ in range(2):
        reader.hear(Said([b"x" * 30]), 0)
    assert not reader.over.done()
    held = line.waiting
    reader.hear(Said([b"x" * 1_000]), 0)
    assert (reader.over.result(), line.waiting) == ("slow", held)


async def test_a_paced_reader_holds_so_many_bytes_and_is_cut_off_with_more():
    reader = Paced(10)
    reader.hear(Said([b"12345"]), 0)
    reader.hear(Said([b"67890"]), 0)
    assert await reader.take() == [b"12345", b"67890"]
    reader.hear(Said([b"1234567890"]), 0)
    reader.hear(Said([b"!"]), 0)
    assert reader.over.result() == "slow"
    assert await reader.take() == [b"1234567890"]
    assert await reader.take() == []


async def test_no_silence_is_longer_than_promised_and_who_hears_something_is_not_pinged():
    loop = asyncio.get_running_loop()
    wheel = Wheel(b"ping", 0.1)
    quiet, lively = Heard(), Heard()
    places = {reader: wheel.add(reader) for reader in (quiet, lively)}
    at = [loop.time()]
    while len(at) < 6:
        lively.hear(Said([b"fact"]), loop.time())
        if len(quiet.pieces) >= len(at):
            at.append(quiet.said_at)
        await asyncio.sleep(0.005)
    # (The machine may be late, but the wheel never means to be.)
    assert wheel.longest_s <= 0.1 + 1e-9
    assert min(after - before for before, after in pairwise(at[1:])) >= 0.1 * (ROUNDS - 1) / ROUNDS - 1e-9
    assert b"ping" not in lively.pieces
    for reader, place in places.items():
        wheel.remove(reader, place)
    await until(lambda: not wheel.turns)


class Stuck(Reader):
    def look(self, at: float) -> None:
        self.cut_off("stalled")


async def test_the_wheel_looks_after_who_takes_nothing():
    wheel = Wheel(b"ping", 0.1)
    reader = Stuck()
    reader.said_at = float("inf")
    place = wheel.add(reader)
    async with asyncio.timeout(SOON_S):
        assert await reader.over == "stalled"
    wheel.remove(reader, place)


async def test_what_goes_on_without_the_framework_is_let_go_where_the_framework_fails():
    left: list[str] = []

    class Stream(TaskStream):
        def __init__(self) -> None: ...

        async def rest(self, scope: Scope, send: Send) -> None:
            left.append("rest")

        def leave(self) -> None:
            left.append("left")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][REST] = Stream()
        if scope["path"] == "/fails":
            raise ValueError

    for path in ("/works", "/fails"):
        scope: Scope = {"type": "http", "path": path, "state": {}, "headers": [], "user": "ann"}  # pyright: ignore[reportAssignmentType]  # what is looked at
        try:
            await went_through(app, scope, _nothing, _nobody)
        except ValueError:
            left.append("raised")
    assert left == ["rest", "left", "raised"]


async def _nothing() -> HTTPReceiveMessage:
    raise AssertionError


async def _nobody(message: object) -> None:
    raise AssertionError(message)
