"""The sliding window: never more than its limit, and never less to one who asks evenly."""

from hypothesis import given
from hypothesis import strategies as st

from app.window import PARTS, Window

PER_S = 60.0
REMEMBERED_S = PER_S * (PARTS - 1) / PARTS
"""What the module promises of every request."""

limits = st.integers(1, 40)
pauses = st.lists(st.one_of(st.just(0.0), st.floats(0, 2), st.floats(0, 100)), max_size=300)


def admitted(limit: int, arrivals: list[float]) -> list[float]:
    """Those that come while there is room."""
    window, admitted = Window(PER_S), list[float]()
    for at in arrivals:
        if window.used(at) < limit:
            window.add(at)
            admitted.append(at)
    return admitted


def arrivals(pauses: list[float], begin: float = 1_000.0) -> list[float]:
    times: list[float] = []
    for pause in pauses:
        begin += pause
        times.append(begin)
    return times


@given(limits, pauses)
def test_whoever_comes_when_no_more_than_the_limit_are_let_in_at_a_time(limit: int, pauses: list[float]):
    let_in = admitted(limit, arrivals(pauses))
    for first, one_too_many in zip(let_in, let_in[limit:], strict=False):
        assert one_too_many - first > REMEMBERED_S - 1e-6


@given(limits, st.integers(1, 200), st.floats(0, 1e6))
def test_who_asks_evenly_is_never_refused(limit: int, number: int, begin: float):
    evenly = [begin + n * (PER_S / limit) * (1 + 1e-9) for n in range(number)]
    assert admitted(limit, evenly) == evenly


@given(limits, pauses)
def test_after_a_whole_window_of_silence_all_of_the_limit_is_there(limit: int, pauses: list[float]):
    before = arrivals(pauses)
    later = (before[-1] if before else 0.0) + PER_S
    assert len(admitted(limit, [*before, *[later] * limit])) - len(admitted(limit, before)) == limit


@given(limits, pauses)
def test_who_waits_as_long_as_told_is_let_in_and_who_waits_less_is_not(limit: int, pauses: list[float]):
    window = Window(PER_S)
    now = 0.0
    for now in arrivals(pauses):
        if window.used(now) < limit:
            window.add(now)
    room_in_s = window.room_in(now, limit)
    assert 0 <= room_in_s <= PER_S
    assert (room_in_s == 0) == (window.used(now) < limit)
    if room_in_s > 0.001:
        assert window.used(now + room_in_s - 0.001) >= limit
    assert window.used(now + room_in_s + 1e-6) < limit


@given(pauses, st.integers(0, 400))
def test_what_is_taken_back_was_never_there(pauses: list[float], taken: int):
    window = Window(PER_S)
    times = arrivals(pauses)
    for at in times:
        window.add(at)
    now = times[-1] if times else 0.0
    before = window.used(now)
    window.take_back(taken)
    assert window.used(now) == max(0, before - taken)


def test_it_keeps_sixty_numbers_however_many_come():
    window = Window(PER_S)
    for n in range(100_000):
        window.add(n / 100)
    assert len(window._counts) <= PARTS + 1  # pyright: ignore[reportPrivateUsage]  # its memory is what is promised
    assert 5_900 <= window.used(999.99) <= 6_000
