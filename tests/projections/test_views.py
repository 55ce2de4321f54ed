"""The views: lists that stay in order, within one owner, and fast; errors that have a name; text of every kind."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
from msgspec import json
from sqlalchemy import select, text
from sqlalchemy.dialects import sqlite

from eventstore.events import Owner, TaskId
from eventstore.memory import MemoryLog
from projections import listing
from projections import views as views_module
from projections.checkpoint import is_of
from projections.database import Database
from projections.generations import Generation
from projections.listing import Between, Filter, Listing, cursor_of, living
from projections.rows import rows_of
from projections.schema import GENERATIONS, MAX_WORD, sessions_table, task_of, tasks_table
from projections.session import SessionView
from projections.session_views import in_order
from projections.session_views import page as session_page
from projections.task import Status, Task
from projections.views import Views
from projections.views_errors import BadCursor, ViewsUnavailable
from tests.given import BEGIN, LIVES, cancelled, completed, failed, started
from tests.projections.databases import Cluster
from tests.projections.lives import ANN, BOB, Scribe, born, carry, fold_of, folded, in_step, numbered, rows

HOSTILE = [
    "'; DROP TABLE tasks_1; --",
    '" OR 1=1 --',
    "100%_\\",
    "a\0b",
    "\ud800",
    "İstanbul ẞ 😀",
    "x" * 5_000,
]


@pytest.fixture
async def views(database: Database) -> Views:
    return Views(database)


async def test_a_list_is_newest_first_by_the_first_fact(database: Database, views: Views) -> None:
    log, first, second = MemoryLog(), numbered(9), numbered(1)
    scribe = Scribe(log)
    await scribe.write(ANN, first, born("first"), at=BEGIN + timedelta(hours=1))
    await scribe.write(ANN, second, born("second"))
    await scribe.write(ANN, first, started(), completed())
    await carry(log, database)
    assert [task.task_id for task in await rows(views, ANN)] == [second, first]
    await in_step(database, fold_of(log))


async def test_what_comes_meanwhile_does_not_move_the_next_page(database: Database, views: Views) -> None:
    log = MemoryLog()
    scribe = Scribe(log)
    before = [await scribe.task(born(str(number))) for number in range(5)]
    await carry(log, database)
    page = await views.list(ANN, limit=2)
    await scribe.task(born("newer"))
    await carry(log, database)
    assert [task.task_id for task in page.tasks] == before[:2:-1]
    rest = await views.list(ANN, after=page.next_cursor, limit=10)
    assert [task.task_id for task in rest.tasks] == before[2::-1]
    assert rest.next_cursor is None


async def test_a_page_that_just_fits_has_no_next(database: Database, views: Views) -> None:
    log = MemoryLog()
    scribe = Scribe(log)
    for _ in range(3):
        await scribe.task(born())
    await carry(log, database)
    assert (await views.list(ANN, limit=3)).next_cursor is None
    assert (await views.list(ANN, limit=2)).next_cursor is not None
    assert await views.list(BOB, limit=3) == await views.list(BOB, Filter(statuses=frozenset()), limit=3)


async def test_every_filter_shows_what_passes_and_nothing_else(database: Database, views: Views) -> None:
    log = MemoryLog()
    scribe = Scribe(log)
    for number in range(40):
        owner = (ANN, BOB)[number % 2]
        status: Status = get_args(Status)[1 + number % 10]
        first = born(f"Task {number}", agent=f"agent-{number % 3}", session_id=f"s{number % 4}" if number % 5 else None)
        # Clocks differ: times do not rise with the sequence.
        at = BEGIN + timedelta(minutes=number * 7 % 40)
        await scribe.task(first, *LIVES[status][1:], owner=owner, at=at)
    await carry(log, database)
    tasks = [task for task in fold_of(log) if task.owner == ANN]
    some: frozenset[Status] = frozenset({"completed", "running", "queued"})
    for statuses in (None, frozenset[Status](), frozenset[Status]({"failed"}), some):
        for agent in (None, "agent-1", "nobody"):
            for session in (None, "s2"):
                for after, before in ((None, None), (10, None), (None, 30), (10, 30), (50, None), (None, 0)):
                    wanted = Filter(
                        statuses=statuses,
                        agent=agent,
                        session_id=session,
                        created_after=None if after is None else BEGIN + timedelta(minutes=after),
                        created_before=None if before is None else BEGIN + timedelta(minutes=before),
                    )
                    passing = [task for task in tasks if passes(task, wanted)]
                    assert await rows(views, ANN, wanted, limit=3) == passing
                    assert (await views.count(ANN, wanted)).tasks == len(passing)


def passes(task: Task, wanted: Filter) -> bool:
    """What a filter promises, said plainly."""
    assert task.created_at is not None
    return (
        (wanted.statuses is None or task.status in wanted.statuses)
        and (wanted.agent is None or task.agent == wanted.agent)
        and (wanted.session_id is None or task.session_id == wanted.session_id)
        and (wanted.created_after is None or task.created_at > wanted.created_after)
        and (wanted.created_before is None or task.created_at < wanted.created_before)
    )


async def test_a_search_finds_text_in_title_and_input_whatever_its_case(database: Database, views: Views) -> None:
    log = MemoryLog()
    scribe = Scribe(log)
    in_title = await scribe.task(born("The Größe of Mice"))
    in_text = await scribe.task(born(input="about MICE"))
    in_depth = await scribe.task(born(input={"steps": [{"say": "Mice, 42 of them", "loud": True, "then": None}]}))
    await scribe.task(born("nothing"), owner=ANN)
    await scribe.task(born("mice"), owner=BOB)
    await carry(log, database)

    async def found(q: str, *, title_only: bool = False) -> list[TaskId]:
        wanted = Filter(q=q, title_only=title_only)
        tasks = await rows(views, ANN, wanted)
        assert (await views.count(ANN, wanted)).tasks == len(tasks)
        return [task.task_id for task in tasks]

    assert await found("mIcE") == [in_depth, in_text, in_title]
    assert await found("mice", title_only=True) == [in_title]
    assert await found("GRÖSSE") == [in_title]
    assert await found("42") == [in_depth]
    assert await found("m%ce") == await found("_ice") == []


async def test_a_search_looks_through_a_bounded_part_a_page_and_goes_on_behind_it(
    database: Database, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MAX_SEARCHED", 4)
    log = MemoryLog()
    scribe = Scribe(log)
    wanted = [await scribe.task(born("needle" if number in (0, 1, 9) else "hay")) for number in range(10)]
    await carry(log, database)
    needle = Filter(q="needle")
    first = await views.list(ANN, needle, limit=2)
    assert [task.task_id for task in first.tasks] == [wanted[9]]
    second = await views.list(ANN, needle, after=first.next_cursor, limit=2)
    assert second.tasks == []
    assert second.next_cursor is not None
    assert [task.task_id for task in await rows(views, ANN, needle)] == [wanted[9], wanted[1], wanted[0]]
    count = await views.count(ANN, needle)
    assert (count.tasks, count.exact) == (1, False)
    assert (await views.count(ANN)).exact


async def test_hostile_text_is_only_text(database: Database, views: Views) -> None:
    log = MemoryLog()
    scribe = Scribe(log)
    for word in HOSTILE:
        whole = word.replace("\ud800", "half")  # (no fact holds half a character: JSON has none)
        await scribe.task(born(whole, agent=whole, input=whole, session_id=whole))
    await carry(log, database)
    tasks = fold_of(log)
    await in_step(database, tasks)
    for word in HOSTILE:
        for wanted in (Filter(q=word, title_only=True), Filter(agent=word), Filter(session_id=word)):
            same = [task for task in tasks if task.title == word]
            assert await rows(views, ANN, wanted) == same
            assert await rows(views, BOB, wanted) == []
        assert await views.list(Owner(word), limit=5) == await views.list(BOB, limit=5)
        assert await views.get(Owner(word), TaskId(word)) is None
    assert await rows(views, ANN, Filter(session_id="x" * (MAX_WORD + 1))) == []


@pytest.mark.parametrize(
    "cursor", ["", "x", "é", "AAAA", cursor_of(7)[:-1], cursor_of(7) + "=", cursor_of(2**63), "\0"]
)
async def test_a_cursor_that_no_page_gave_is_refused(database: Database, views: Views, cursor: str) -> None:
    await carry(MemoryLog(), database)
    with pytest.raises(BadCursor):
        await views.list(ANN, after=cursor, limit=5)


async def test_another_owners_task_does_not_exist(database: Database, views: Views) -> None:
    log = MemoryLog()
    scribe = Scribe(log)
    hers = await scribe.task(born("hers"), started(), failed())
    await scribe.task(born("his"), owner=BOB)
    await carry(log, database)
    assert await views.get(BOB, hers) is None
    cursor = (await views.list(ANN, limit=1)).next_cursor
    assert cursor is None
    seen = await views.list(BOB, after=cursor_of(2**62), limit=5)
    assert [task.title for task in seen.tasks] == ["his"]


async def test_until_there_are_views_it_says_so(database: Database, views: Views) -> None:
    for ask in (views.list(ANN, limit=5), views.count(ANN), views.get(ANN, numbered(1)), views.checkpoint()):
        with pytest.raises(ViewsUnavailable):
            await ask


async def test_a_request_that_is_given_up_leaves_nothing_behind(database: Database, views: Views) -> None:
    log = MemoryLog()
    await Scribe(log).task(born("a"), cancelled())
    await carry(log, database)
    for turns in range(40):
        asking = asyncio.ensure_future(views.list(ANN, limit=5))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await in_step(database, fold_of(log))


@pytest.mark.parametrize("url", ["", "mysql://user:secret@db/x", "sqlite://", "sqlite:////no/such/place/views.db", "%"])
def test_an_address_that_is_no_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ViewsUnavailable) as refused:
        Database.open(url)
    assert "secret" not in str(refused.value)


async def test_a_database_that_is_away_has_a_name_and_no_password() -> None:
    database = Database.open("postgresql://ann:secret@127.0.0.1:1/views")
    with pytest.raises(ViewsUnavailable) as away:
        await Views(database).list(ANN, limit=5)
    assert "secret" not in str(away.value)
    await database.close()


async def test_a_file_that_is_no_database_has_a_name_and_a_cure(tmp_path: Path) -> None:
    (tmp_path / "views.db").write_bytes(b"no database at all, " * 100)
    database = Database.open(f"sqlite:///{tmp_path / 'views.db'}")
    with pytest.raises(ViewsUnavailable, match="delete it"):
        await Views(database).list(ANN, limit=5)
    (tmp_path / "views.db").unlink()
    await carry(MemoryLog(), database)
    assert (await Views(database).list(ANN, limit=5)).tasks == []
    await database.close()


async def test_who_only_reads_makes_no_file_and_who_writes_makes_it_for_our_eyes_alone(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'views.db'}")
    with pytest.raises(ViewsUnavailable, match="there is no such file now"):
        await Views(database).list(ANN, limit=5)
    assert modes(tmp_path) == {}
    await carry(MemoryLog(), database)
    assert modes(tmp_path) == {"views.db": 0o600, "views.db-wal": 0o600, "views.db-shm": 0o600}
    await database.close()


def modes(directory: Path) -> dict[str, int]:
    return {one.name: one.stat().st_mode & 0o777 for one in directory.iterdir()}


async def test_a_postgresql_that_was_restarted_is_used_again(postgresql: Cluster) -> None:
    database = Database.open(postgresql.new_database())
    log = MemoryLog()
    await Scribe(log).task(born("a"))
    await carry(log, database)
    await asyncio.to_thread(postgresql.stop)
    with pytest.raises(ViewsUnavailable):
        await Views(database).list(ANN, limit=5)
    await asyncio.to_thread(postgresql.start)
    await in_step(database, fold_of(log))
    await database.close()


PLANS = {
    "by_created": Filter(),
    "by_status": Filter(statuses=frozenset({"failed", "running"})),
    "by_agent": Filter(agent="simulator"),
    "by_agent_and_status": Filter(agent="simulator", statuses=frozenset({"failed"})),
    "by_session": Filter(session_id="s1", statuses=frozenset({"failed"})),
}


@pytest.mark.parametrize("index", PLANS)
async def test_a_page_walks_one_index_and_never_the_table(tmp_path: Path, index: str) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'views.db'}")
    await carry(MemoryLog(), database)
    page = Listing(tasks_table(1), ANN, PLANS[index], sqlite=True).page(Between(high=1000), 21)
    words = str(page.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}))
    async with database.reading() as connection:
        plan = [str(row[3]) for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {words}"))]
    await database.close()
    walks = [step for step in plan if f"tasks_1_{index} " in step]
    assert walks, plan
    assert all("created>? AND created<?" in step for step in walks), plan
    # The bodies by their key; what is sorted is a page of keys. Nothing reads a table from end to end.
    assert any("INTEGER PRIMARY KEY (rowid=?)" in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN tasks")], plan


async def test_a_page_of_sessions_and_a_sessions_tasks_walk_an_index(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'views.db'}")
    await carry(MemoryLog(), database)
    view = SessionView(owner=ANN, session_id="s1")
    plans = {
        "sessions_1_by_created": session_page(sessions_table(1), ANN, offset=100, limit=20),
        "tasks_1_by_session": in_order(tasks_table(1), view, offset=100, limit=20),
    }
    async with database.reading() as connection:
        for index, query in plans.items():
            words = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
            plan = [str(row[3]) for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {words}"))]
            assert any(f"COVERING INDEX {index} " in step for step in plan), plan
            assert not [step for step in plan if step.startswith(("SCAN tasks", "SCAN sessions"))], plan
            assert not any("TEMP B-TREE" in step for step in plan[:4] if "sessions" in index), plan
    await database.close()


async def test_all_that_live_are_found_with_their_place_and_the_checkpoint(
    database: Database, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views_module, "MAX_PAGE", 3)
    log = MemoryLog()
    scribe = Scribe(log)
    for number in range(20):
        life = (started(), completed()) if number % 2 else (started(),)
        await scribe.task(born(str(number)), *life, owner=(ANN, BOB)[number % 3 == 0])
    await carry(log, database)
    await scribe.task(born("not taken in yet"))
    found: list[tuple[Task, int]] = []
    checkpoint = await views.living(lambda task, place: found.append((task, place)))
    assert checkpoint == await (await Generation.current(database)).checkpoint()
    assert checkpoint.sequence == 50
    assert await is_of(log, checkpoint, end=51)
    alive = [task for task in reversed(folded(scribe.written[:50])) if not task.ended]
    assert [task for task, _ in found] == alive
    firsts = {one.task_id: one.sequence for one in scribe.written if one.record.version == 1}
    assert [place for _, place in found] == [firsts[task.task_id] for task in alive]


async def test_what_is_read_at_one_moment_does_not_change_meanwhile(database: Database) -> None:
    """A projector that carries on must not make some of it newer than the checkpoint."""
    log = MemoryLog()
    scribe = Scribe(log)
    task_id = await scribe.task(born())
    await carry(log, database)
    table = tasks_table((await Generation.current(database)).number)
    async with database.reading(at_one_moment=True) as connection:
        before = (await connection.execute(select(GENERATIONS.c.checkpoint))).scalar_one()
        await scribe.write(ANN, task_id, cancelled())
        await carry(log, database)
        (row,) = (await connection.execute(living(table, Between(), 10))).all()
    assert (before, task_of(row.body).sequence) == (1, 1)


async def test_who_lives_is_found_without_a_walk_over_those_who_have_ended(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'views.db'}")
    await carry(MemoryLog(), database)
    words = living(tasks_table(1), Between(low=7), 100).compile(
        dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True}
    )
    async with database.reading() as connection:
        plan = [str(row[3]) for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {words}"))]
    await database.close()
    assert plan == ["SEARCH tasks_1 USING INDEX tasks_1_by_life (created>?)"], plan


async def test_a_batchs_tasks_are_looked_up_by_their_index(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'views.db'}")
    await carry(MemoryLog(), database)
    words = rows_of(tasks_table(1), sqlite=True).compile(dialect=sqlite.dialect(paramstyle="named"))
    keys = json.encode([(ANN, numbered(number)) for number in range(100)]).decode()
    asked = {**words.params, "keys": keys}
    async with database.reading() as connection:
        plan = [str(row[3]) for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {words}"), asked)]
    await database.close()
    assert any("tasks_1_by_id (owner=? AND task_id=?)" in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN tasks")], plan
