"""SQLite's file: made by who writes and never by who reads, and recognised by each connection as the one it opened."""

import fcntl
import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect, ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

BUSY_S = 15.0
"""How long a writer of SQLite waits for another one."""
# A power cut may take the last transactions, each as a whole: they come again from the log. The WAL grows to 64 MiB
# before it is written back: at the default of 4 a rebuild waits for the disk half of the time. The last of them reads:
# it is then that SQLite opens the files beside the database.
PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "wal_autocheckpoint=16384",
    "cache_size=-65536",
    "temp_store=MEMORY",
    "schema_version",
)
BESIDE = ("-wal", "-shm")
SPOILT = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_IOERR_SHORT_READ")
LOST = (*SPOILT, "SQLITE_IOERR")
"""Errors after which no connection that is open is of any use."""

Node = tuple[int, int] | None
"""Which file it is, whatever its name; None: there is none."""


class _Cursor(Protocol):
    def execute(self, sql: str, /) -> object: ...
    def close(self) -> None: ...


class _Connected(Protocol):
    def cursor(self) -> _Cursor: ...


class SqliteFile:
    """The file of one pool of connections."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.torn = False
        """Whether a file beside it, without which it is no whole, was taken from under a connection of ours."""

    def make(self) -> None:
        """Make it, readable by its user alone, if it is not there or not whole. What an earlier one left beside it
        goes first: SQLite would take it for the new one's. Raises OSError, sqlite3.Error."""
        if self._is_there():
            return
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            # Two that make it would take each other's files away.
            fcntl.flock(directory, fcntl.LOCK_EX)
            if not self._is_there():
                self._make()
                self.torn = False
        finally:
            os.close(directory)

    def look(self) -> None:
        """Raises sqlite3.Error where this is no database (any more): who has pages of it in memory would not notice."""
        # By SQLite, not by our own hands: a file that is closed takes all locks of this process on it away.
        with closing(sqlite3.connect(self._address("mode=ro&immutable=1"), uri=True)) as connection:
            connection.execute("PRAGMA schema_version").fetchall()

    def watch(self, engine: AsyncEngine) -> None:
        """Have the engine's connections be to this file, whatever is deleted, replaced or spoilt meanwhile."""
        listened = engine.sync_engine
        event.listen(listened, "do_connect", self._on_do_connect)
        event.listen(listened, "connect", self._on_connect)
        event.listen(listened, "checkout", self._on_checkout)
        event.listen(listened, "begin", _on_begin)
        event.listen(listened, "handle_error", _on_error)

    def _is_there(self) -> bool:
        # (SQLite takes an empty file for a new database, so it is as good as none.)
        return not self.torn and self.path.exists() and self.path.stat().st_size > 0

    def _make(self) -> None:
        draft = self._named(f".{os.getpid()}-new")
        with suppress(FileNotFoundError):
            draft.unlink()
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        for one in (self.path, *map(self._named, BESIDE)):
            with suppress(FileNotFoundError):
                one.unlink()
        draft.rename(self.path)

    def _on_do_connect(
        self, _dialect: Dialect, record: ConnectionPoolEntry, arguments: list[object], options: dict[str, object]
    ) -> DBAPIConnection | None:
        # Before it is opened: if another takes its place in between, we find out at the next checkout.
        record.info["file"] = node = _node(self.path)
        if node is None:
            # (Left to the driver, its thread might complain of a loop that is closed by then.)
            raise FileNotFoundError("there is no such file now; whoever carries the views makes it")
        arguments[0] = self._address("mode=rw")  # not "rwc": a reader would make an empty one
        options["uri"] = True
        return None

    def _on_connect(self, connected: _Connected, record: ConnectionPoolEntry) -> None:
        cursor = connected.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
        record.info["beside"] = self._beside()

    def _on_checkout(self, _connected: _Connected, record: ConnectionPoolEntry, _proxy: object) -> None:
        # A file that was deleted, or put in place of another, lives on for whoever has it open: some would read it for
        # ever, others the new one. The pool opens another connection instead.
        if record.info["file"] != _node(self.path):
            raise DisconnectionError
        if record.info["beside"] != self._beside():
            self.torn = True
            raise DisconnectionError

    def _beside(self) -> tuple[Node, ...]:
        return tuple(_node(self._named(suffix)) for suffix in BESIDE)

    def _named(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def _address(self, how: str) -> str:
        return f"{self.path.as_uri()}?{how}"


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_error(context: ExceptionContext) -> None:
    if is_error(context.original_exception, LOST):
        context.is_disconnect = True  # the pool lets go of them all


def is_error(error: object, kinds: tuple[str, ...]) -> bool:
    """Whether it is one of these errors of SQLite, or of their kinds."""
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorname", "").startswith(kinds)


def _node(path: Path) -> Node:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
