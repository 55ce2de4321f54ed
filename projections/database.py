"""The views' database: SQLite in a file, or PostgreSQL by URL."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from sqlite3 import Error as SqliteError
from typing import TypeVar

from asyncpg import InterfaceError, PostgresError
from msgspec import ValidationError
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from projections.sqlite import BUSY_S, SPOILT, SqliteFile, is_error
from projections.views_errors import ViewsUnavailable

Answer = TypeVar("Answer")

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
STATEMENT_S = 60.0
OUR_LOCK = 0x7461736B
"""PostgreSQL's advisory lock under which generations are made, switched and dropped."""


def settled(url: str) -> str:
    """The same address, a file by its whole path, for processes elsewhere. Raises ViewsUnavailable."""
    Database.open(url)
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database is None:
        return url
    return parsed.set(database=str(Path(parsed.database).absolute())).render_as_string(hide_password=False)


class Database:
    """A pool of connections. `open` first, `close` last."""

    def __init__(self, engine: AsyncEngine, file: SqliteFile | None) -> None:
        self._engine = engine
        self._file = file
        if file is not None:
            file.watch(engine)
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
        return cls(*_sqlite(parsed)) if kind == "sqlite" else cls(_postgresql(parsed), None)

    @property
    def sqlite(self) -> bool:
        """Whether it is SQLite; else it is PostgreSQL."""
        return self._file is not None

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
        """A transaction that is there as a whole or not at all; `alone`: no two such at once, and SQLite's file is made
        for it where there is none. Raises ViewsUnavailable.

        SQLite has one writer at a time: it begins as one, for a reader that turns writer may be told that it is late.
        """
        if alone and self._file is not None:
            async with _named_errors(self.address):
                await asyncio.to_thread(self._file.make)
        async with _named_errors(self.address), self._engine.connect() as connection:
            await connection.execution_options(writes=True)
            async with connection.begin():
                if alone and not self.sqlite:
                    await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": OUR_LOCK})
                yield connection

    async def look(self) -> None:
        """Raises ViewsUnavailable where it can be seen that it is not, or not whole, what it was. A file that nobody
        reads from the disk or writes to is else missed by nobody."""
        async with _named_errors(self.address):
            if self._file is not None:
                await asyncio.to_thread(self._file.look)
        async with self.reading():
            pass
        if self._file is not None and self._file.torn:
            raise ViewsUnavailable(f"{self.address}: a file beside it (-wal, -shm) was taken away; it is made anew")

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
        if is_error(cause, SPOILT):
            reason += "; if it is the views' own file, delete it (-wal and -shm beside it may stay)"
            reason += ": all of it is made anew from the log"
        raise ViewsUnavailable(f"{address}: {reason}") from error
    except ValidationError as error:
        raise ViewsUnavailable(f"{address}: a row that this release can't read: {error}") from error


def _sqlite(url: URL) -> tuple[AsyncEngine, SqliteFile]:
    if not url.database or url.database == ":memory:":
        raise ViewsUnavailable("SQLite's views need a file: each connection would have a memory of its own")
    database = Path(url.database)
    if not database.parent.is_dir():
        raise ViewsUnavailable(f"there is no directory {database.parent}")
    # isolation_level None: the driver begins no transactions of its own; the file's watch does.
    return create_async_engine(url, connect_args={"isolation_level": None, "timeout": BUSY_S}), SqliteFile(database)


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
