"""The sessions' door: what is decided rests on the log, whoever else writes, or hangs up."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.commands import CancelTask, CreateTask
from app.decide import Rejected
from app.metrics import Metrics
from app.sessions import DeleteSession, SessionCommand, Sessions, TitleSession
from app.tasks import Done, Tasks
from app.views import Lists
from eventstore.events import Owner, SessionTitled
from eventstore.log import EventLog, task_of_subject
from eventstore.memory import MemoryLog
from projections.database import Database
from projections.projector import Projector
from projections.session import Session
from projections.views_errors import ViewsUnavailable
from tests.api import CAUSE
from tests.log.logs import ANN, SOON_S, session_record_of
from tests.projections.lives import sessions_of

BOB = Owner("bob")


class House:
    """A log, its views carried along, and the two doors."""

    def __init__(self, log: EventLog, tasks: Tasks, lists: Lists) -> None:
        self.log = log
        self.tasks = tasks
        self.lists = lists
        self.sessions = Sessions(tasks, lists)

    async def begin(self, session_id: str, *, owner: Owner = ANN) -> None:
        """A task that names the session."""
        command = CreateTask(agent="simulator", fingerprint="f", session_id=session_id)
        assert isinstance(await self.tasks.create(owner, command, CAUSE), Done)

    async def do(self, command: SessionCommand, session_id: str = "s1", *, owner: Owner = ANN) -> Session | Rejected:
        return await self.sessions.execute(owner, session_id, command, CAUSE)


@asynccontextmanager
async def housed(log: EventLog, directory: Path) -> AsyncGenerator[House]:
    """While the context lasts."""
    url = f"sqlite:///{directory / 'views.db'}"
    lists, database = Lists(url), Database.open(url)
    projector = Projector(log, database)
    running = asyncio.ensure_future(projector.run())
    tasks = await Tasks.open(log, Metrics("api"))
    try:
        yield House(log, tasks, lists)
    finally:
        await tasks.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await projector.close()
        await database.close()
        await lists.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    log = MemoryLog()
    async with housed(log, tmp_path) as house:
        await until_served(house)
        yield house
    await log.close()


async def until_served(house: House) -> None:
    """Return when there are views."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await house.lists.checkpoint()
            except ViewsUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_title_is_one_fact_with_its_cause_and_the_same_again_is_none(house: House):
    await house.begin("s1")
    for _ in range(2):
        done = await house.do(TitleSession(title="Trip"))
        assert isinstance(done, Session)
        assert done.title == "Trip"
    (recorded,) = await house.log.read_session(ANN, "s1")
    record = recorded.record
    assert record.fact == SessionTitled(title="Trip", session_id="s1")
    assert (record.actor, record.causation_id, record.version, record.previous) == ("test", "request-1", 1, "")


async def test_nobodys_session_and_another_owners_are_not_found_and_nothing_is_written(house: House):
    await house.begin("s1")
    before = await house.log.last_sequence()
    for command in (TitleSession(title="Trip"), DeleteSession()):
        for session_id, owner in (("never", ANN), ("s1", BOB), ("", ANN), ("x" * 5_000, ANN), ("\ud800", ANN)):
            done = await house.do(command, session_id, owner=owner)
            assert isinstance(done, Rejected)
            assert done.reason == "not_found"
    assert await house.log.last_sequence() == before


async def test_many_writers_at_once_each_have_their_say_in_one_chain(house: House):
    await house.begin("s1")
    titles = [f"Title {n}" for n in range(8)]
    done = await asyncio.gather(*[house.do(TitleSession(title=title)) for title in titles])
    assert all(isinstance(one, Session) for one in done)
    written = await house.log.read_session(ANN, "s1")
    assert [one.record.version for one in written] == [*range(1, 9)]
    assert [one.record.previous for one in written[1:]] == [one.sha256 for one in written[:-1]]


async def test_what_another_process_wrote_meanwhile_is_decided_on(house: House):
    await house.begin("s1")
    await house.do(TitleSession(title="Trip"))
    (first,) = await house.log.read_session(ANN, "s1")
    # The views need not have it: the log is asked too.
    record = session_record_of(SessionTitled(title="Rome"), first, at=first.record.at)
    await house.log.append_session(ANN, "s1", record, first.sequence)
    done = await house.do(TitleSession(title="Rome"))
    assert isinstance(done, Session)
    assert (done.version, len(await house.log.read_session(ANN, "s1"))) == (2, 2)


async def test_a_caller_that_goes_away_loses_nothing(house: House):
    await house.begin("s1")
    asking = asyncio.ensure_future(house.do(TitleSession(title="Trip")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(SOON_S):
        while not await house.log.read_session(ANN, "s1"):  # noqa: ASYNC110  # nobody is told: its caller went away
            await asyncio.sleep(0.01)


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "title", "delete", "cancel"]), st.sampled_from(["s1", "s 2"]), st.booleans()
    ),
    max_size=25,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=MOVES)
def test_whatever_is_asked_of_sessions_views_and_log_agree_and_repeats_are_harmless(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, str, bool]]
):
    asyncio.run(play(tmp_path_factory.mktemp("views"), moves))


async def play(directory: Path, moves: list[tuple[str, str, bool]]) -> None:
    log = MemoryLog()
    async with housed(log, directory) as house:
        await until_served(house)
        there: dict[tuple[Owner, str], str | None] = {}
        known: set[tuple[Owner, str]] = set()
        for number, (move, session_id, hers) in enumerate(moves):
            key = owner, _ = (ANN if hers else BOB, session_id)
            match move:
                case "begin":
                    await house.begin(session_id, owner=owner)
                    there.setdefault(key)
                    known.add(key)
                case "title":
                    for _ in range(2):
                        done = await house.do(TitleSession(title=f"No. {number}"), session_id, owner=owner)
                        assert isinstance(done, Session) == (key in there)
                    if key in there:
                        there[key] = f"No. {number}"
                case "delete":
                    for _ in range(2):
                        done = await house.do(DeleteSession(), session_id, owner=owner)
                        assert isinstance(done, Session) == (key in known)
                    there.pop(key, None)
                case _:
                    await cancel_one(house, owner)
        await house.tasks.tail.catch_up()
        await house.lists.reach(house.tasks.tail.position)
        expected = sessions_of(log.arrivals)
        assert {(view.owner, view.session_id): view.session.title for view, _ in expected} == there
        for owner in (ANN, BOB):
            page = await house.lists.sessions(owner, offset=0, limit=10)
            assert [one.view for one in page.sessions] == [view for view, _ in expected if view.owner == owner]
    await log.close()


async def cancel_one(house: House, owner: Owner) -> None:
    """Its newest task, if it has one."""
    assert isinstance(house.log, MemoryLog)
    for arrival in reversed(house.log.arrivals):
        about = task_of_subject(arrival.subject)
        if about is not None and about[0] == owner:
            await house.tasks.execute(owner, about[1], CancelTask(by="ann"), CAUSE)
            return
