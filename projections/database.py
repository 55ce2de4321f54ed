"""The views' database: SQLite in a file, or PostgreSQL by URL; what goes wrong in it has a name here.

ViewsError
├── ViewsUnavailable   the database can't be reached, or holds nothing (yet) that could be read
├── Superseded         this generation of the views is gone: another one is served or built
└── BadCursor          this is no cursor that a page ever gave
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from sqlite3 import Error as SqliteError
from typing import Protocol, TypeVar

from asyncpg import InterfaceError, PostgresError
from msgspec import ValidationError
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

Answer = TypeVar("Answer")

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
BUSY_S = 15.0
"""How long a writer of SQLite waits for another one."""
STATEMENT_S = 60.0
# A power cut may take the last transactions, each as a whole: they come again from the log. The WAL grows to 64 MiB
# before it is written back: at the default of 4 a rebuild waits for the disk half of the time.
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "wal_autocheckpoint=16384",
    "cache_size=-65536",
    "temp_store=MEMORY",
)
SPOILT = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
OUR_LOCK = 0x7461736B
"""PostgreSQL's advisory lock under which generations are made, switched and dropped."""


class ViewsError(Exception):
    """The views could not do what was asked."""


class ViewsUnavailable(ViewsError):
    """The views can't be read or written now."""


class Superseded(ViewsError):
    """This generation is gone."""


class BadCursor(ViewsError):
    """Not a cursor of ours."""


class _Cursor(Protocol):
    def execute(self, sql: str, /) -> object: ...
    def close(self) -> None: ...


class _Connected(Protocol):
    def cursor(self) -> _Cursor: ...


def settled(url: str) -> str:
    """The same address, a file by its whole path, for processes elsewhere. Raises ViewsUnavailable."""
    Database.open(url)
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database is None:
        return url
    return parsed.set(database=str(Path(parsed.database).absolute())).render_as_string(hide_password=False)


class Database:
    """A pool of connections. `open` first, `close` last."""

    def __init__(self, engine: AsyncEngine, *, sqlite: bool) -> None:
        self._engine = engine
        self.sqlite = sqlite
        self._working: set[object] = set()
        self._idle = asyncio.Event()

    @classmethod
    def open(cls, url: str) -> "Database":
        """`sqlite:///<file>` or `postgresql://...`; nothing is connected yet. Raises ViewsUnavailable."""
        try:
            parsed = make_url(url)
        except SQLAlchemyError:
            # Not its own words: they quote the URL, password and all.
            raise ViewsUnavailable("this is no address of a database (sqlite:///FILE or postgresql://...)") from None
        kind = parsed.get_backend_name()
        if kind not in DRIVERS:
            raise ViewsUnavailable(f"views are kept in SQLite or PostgreSQL, not in {kind}")
        parsed = parsed.set(drivername=DRIVERS[kind])
        return cls(_sqlite(parsed), sqlite=True) if kind == "sqlite" else cls(_postgresql(parsed), sqlite=False)

    @property
    def address(self) -> str:
        """For people and logs: without the password."""
        return self._engine.url.render_as_string(hide_password=True)

    @asynccontextmanager
    async def reading(self, *, at_one_moment: bool = False) -> AsyncGenerator[AsyncConnection]:
        """A transaction that only reads; `at_one_moment`: all of it as of its beginning, which PostgreSQL else promises
        for each statement only. Raises ViewsUnavailable for whatever the database does."""
        with_names = _named_errors(self.address)
        async with with_names, self._engine.connect() as connection, connection.begin():
            if at_one_moment and not self.sqlite:
                await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            yield connection

    @asynccontextmanager
    async def writing(self, *, alone: bool = False) -> AsyncGenerator[AsyncConnection]:
        """A transaction that is there as a whole or not at all; `alone`: no two such at once. Raises ViewsUnavailable.

        SQLite has one writer at a time: it begins as one, for a reader that turns writer may be told that it is late.
        """
        async with _named_errors(self.address), self._engine.connect() as connection:
            await connection.execution_options(writes=True)
            async with connection.begin():
                if alone and not self.sqlite:
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": OUR_LOCK})
                yield connection

    async def whole(self, work: Coroutine[object, object, Answer]) -> Answer:
        """Let this come to its end even if who waits for it does not. A driver that is cancelled in the middle leaves
        a connection that holds its locks (SQLite), or has to be made anew (PostgreSQL)."""
        doing = asyncio.ensure_future(self._counted(work))
        self._working.add(doing)
        doing.add_done_callback(self._working.discard)
        return await asyncio.shield(doing)

    async def _counted(self, work: Coroutine[object, object, Answer]) -> Answer:
        try:
            return await work
        finally:
            self._idle.set()

    async def close(self) -> None:
        """Let what is under way end, and close the connections."""
        while self._working:
            self._idle.clear()
            await self._idle.wait()
            await asyncio.sleep(0)
        await self._engine.dispose()


@asynccontextmanager
async def _named_errors(address: str) -> AsyncGenerator[None]:
    try:
        yield
    except (SQLAlchemyError, SqliteError, PostgresError, InterfaceError, OSError, TimeoutError) as error:
        # (SQLAlchemy's own text would quote the statement with its values: other people's titles.)
        cause = getattr(error, "orig", None) or error
        reason = (str(cause) or type(cause).__name__).splitlines()[0][:300]
        if isinstance(cause, SqliteError) and getattr(cause, "sqlite_errorname", "").startswith(SPOILT):
            reason += "; if it is the views' own file, delete it: all of it is made anew from the log"
        raise ViewsUnavailable(f"{address}: {reason}") from error
    except ValidationError as error:
        raise ViewsUnavailable(f"{address}: a row that this release can't read: {error}") from error


def _sqlite(url: URL) -> AsyncEngine:
    if not url.database or url.database == ":memory:":
        raise ViewsUnavailable("SQLite's views need a file: each connection would have a memory of its own")
    database = Path(url.database)
    if not database.parent.is_dir():
        raise ViewsUnavailable(f"there is no directory {database.parent}")
    # isolation_level None: the driver begins no transactions of its own; ours are below.
    engine = create_async_engine(url, connect_args={"isolation_level": None, "timeout": BUSY_S})

    def on_connect(connected: _Connected, record: ConnectionPoolEntry) -> None:
        cursor = connected.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        record.info["file"] = _file(database)

    def on_checkout(_connected: _Connected, record: ConnectionPoolEntry, _proxy: object) -> None:
        # A file that was deleted, or put in place of another, lives on for whoever has it open: some would read it for
        # ever, others the new one. The pool opens another connection instead.
        if record.info["file"] != _file(database):
            raise DisconnectionError

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "checkout", on_checkout)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine


def _file(path: Path) -> tuple[int, int] | None:
    """Which file this is; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _postgresql(url: URL) -> AsyncEngine:
    return create_async_engine(
        url,
        pool_pre_ping=True,  # else a restarted server fails one request for each connection that was pooled
        pool_timeout=10,
        connect_args={
            "timeout": 5,
            "command_timeout": STATEMENT_S,
            # What a crash of the database may take comes again from the log; rows and checkpoint go together.
            "server_settings": {"synchronous_commit": "off", "application_name": "tasktrail"},
        },
    )
