"""The tables of the views: what a task's row says, and which fold it is of."""

import hashlib
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec
from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, LargeBinary, MetaData, Table, Text

from eventstore.events import Json, Owner, TaskId
from eventstore.log import BadSubject, session_word
from projections.checkpoint import Checkpoint, Seen
from projections.task import Task

FOLD_VERSION = 5
"""Raised with every change of `Task`, of what `evolve` makes of a record, or of the tables: the views are then built
anew, side by side. A test knows the shape of them, and fails where this was forgotten."""

MAX_SEARCHED_TEXT = 8_192
"""Characters of an input that a search looks at."""
MAX_WORD = 200
"""Characters of a session's or agent's name that an index holds as they are; PostgreSQL's entries have 2.7 KB."""
HALVES = re.compile("[\ud800-\udfff]")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONG = BigInteger().with_variant(Integer, "sqlite")

CONTROL = MetaData()
GENERATIONS = Table(
    "views_generations",
    CONTROL,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("fold", Integer, nullable=False),
    Column("checkpoint", LONG, nullable=False, default=0),
    # The last task's record taken in: by it a log that is another one is recognised.
    Column("seen_owner", Text, nullable=False, default=""),
    Column("seen_task", Text, nullable=False, default=""),
    Column("seen_sequence", LONG, nullable=False, default=0),
    Column("seen_sha256", Text, nullable=False, default=""),
    # The latest time of creation so far, and by how much a later task's was earlier at most (clocks differ).
    Column("latest_at", LONG, nullable=False, default=0),
    Column("skew", LONG, nullable=False, default=0),
)
_g = GENERATIONS.c
PROGRESS = (_g.checkpoint, _g.seen_owner, _g.seen_task, _g.seen_sequence, _g.seen_sha256)
"""The columns that `checkpoint_of` reads, in its order."""
SERVED = Table(
    "views_served",
    CONTROL,
    Column("name", Text, primary_key=True),
    Column("generation", Integer),
    Column("last_generation", Integer, nullable=False),
)
NAME = "tasks"
"""The row of SERVED that says which generation is read."""


@lru_cache(maxsize=16)
def tasks_table(generation: int) -> Table:
    """The tasks of one generation. Times are microseconds since 1970.

    `created` is the sequence of a task's first fact, the order of all lists. `listed_at` is the latest time of creation
    up to it: it never falls as `created` rises, so that a time can be looked up as a place in the list.
    """
    table = Table(
        f"tasks_{generation}",
        MetaData(),
        Column("created", LONG, primary_key=True, autoincrement=False),
        Column("owner", Text, nullable=False),
        Column("task_id", Text, nullable=False),
        Column("agent", Text, nullable=False),
        Column("status", Text, nullable=False),
        Column("started", Boolean, nullable=False),
        Column("session_id", Text),
        Column("created_at", LONG, nullable=False),
        Column("listed_at", LONG, nullable=False),
        Column("updated_at", LONG, nullable=False),
        Column("ended_at", LONG),
        Column("sequence", LONG, nullable=False),
        Column("version", Integer, nullable=False),
        Column("sha256", Text, nullable=False),
        # False: a record in between could not be read, so that this is not what the log says.
        Column("whole", Boolean, nullable=False),
        Column("title", Text, nullable=False),
        Column("input_text", Text, nullable=False),
        # Last: a search does not read past what it looks at.
        Column("body", LargeBinary, nullable=False),
    )
    c = table.c
    Index(f"{table.name}_by_id", c.owner, c.task_id, unique=True)
    Index(f"{table.name}_by_created", c.owner, c.created)
    Index(f"{table.name}_by_status", c.owner, c.status, c.created)
    Index(f"{table.name}_by_agent", c.owner, c.agent, c.created)
    Index(f"{table.name}_by_agent_and_status", c.owner, c.agent, c.status, c.created)
    Index(f"{table.name}_by_time", c.owner, c.listed_at, c.created)
    # Few at a time, and all that a dispatcher begins with: it does not walk a million that have ended.
    alive = c.ended_at.is_(None)
    Index(f"{table.name}_by_life", c.created, sqlite_where=alive, postgresql_where=alive)
    some_session = c.session_id.is_not(None)
    Index(
        f"{table.name}_by_session",
        c.owner,
        c.session_id,
        c.created,
        sqlite_where=some_session,
        postgresql_where=some_session,
    )
    return table


@lru_cache(maxsize=16)
def sessions_table(generation: int) -> Table:
    """The sessions of one generation. `created` is the sequence of the session's first task, the order of all lists;
    NULL where it has none since it was deleted. `sequence`: up to where in the log the row is."""
    table = Table(
        f"sessions_{generation}",
        MetaData(),
        Column("owner", Text, primary_key=True),
        Column("word", Text, primary_key=True),
        Column("created", LONG),
        Column("sequence", LONG, nullable=False),
        Column("body", LargeBinary, nullable=False),
    )
    Index(f"{table.name}_by_created", table.c.owner, table.c.created)
    return table


@lru_cache(maxsize=16)
def owners_table(generation: int) -> Table:
    """How many sessions each owner has: to count a million of them takes too long for a page."""
    return Table(
        f"owners_{generation}",
        MetaData(),
        Column("owner", Text, primary_key=True),
        Column("sessions", LONG, nullable=False),
    )


def tables(generation: int) -> tuple[Table, ...]:
    """All tables of one generation."""
    return tasks_table(generation), sessions_table(generation), owners_table(generation)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Task)


def body_of(task: Task) -> bytes:
    """The whole folded task. JSON, as its facts are: whatever came in by one goes back by it."""
    return _encoder.encode(task)


def task_of(body: bytes) -> Task:
    """The task of a row. Raises msgspec.ValidationError."""
    return _decoder.decode(body)


def checkpoint_of(sequence: int, owner: str, task_id: str, seen_at: int, sha256: str) -> Checkpoint:
    """A generation's checkpoint, of its row's PROGRESS."""
    seen = Seen(owner=Owner(owner), task_id=TaskId(task_id), sequence=seen_at, sha256=sha256)
    return Checkpoint(sequence=sequence, seen=seen if seen_at else None)


def micros(time: datetime) -> int:
    """A time as a row has it."""
    return (time - EPOCH) // timedelta(microseconds=1)


def storable(text: str) -> str:
    """With signs for what PostgreSQL has no text for: NUL, and halves of characters."""
    return HALVES.sub("\ufffd", text.replace("\0", "\u2400"))


def indexed(word: str) -> str:
    """A name as an index has it; a very long one by its digest."""
    word = storable(word)
    return word if len(word) <= MAX_WORD else f"sha256:{hashlib.sha256(word.encode()).hexdigest()}"


def session_key(session_id: str) -> str:
    """A session as rows have it: its subject's word; what can have no subject is found by a digest."""
    try:
        return session_word(session_id)
    except BadSubject:
        return f"sha256:{hashlib.sha256(storable(session_id).encode()).hexdigest()}"


def searched(text: str) -> str:
    """Text, or what is looked for in it, as both are compared."""
    return storable(text.casefold())


def text_of(value: Json) -> str:
    """What a search finds in an input: its texts and numbers, wherever they are in it, up to a bound."""
    found: list[str] = []
    length = 0
    left: list[object] = [value]
    while left and length < MAX_SEARCHED_TEXT:
        one = left.pop()
        if isinstance(one, dict):
            left.extend(reversed(msgspec.convert(one, dict[str, object]).values()))
        elif isinstance(one, list):
            left.extend(reversed(msgspec.convert(one, list[object])))
        elif one is not None:
            found.append(one if isinstance(one, str) else str(one))
            length += len(found[-1]) + 1
    return "\n".join(found)[:MAX_SEARCHED_TEXT]
