"""Database connections and transactions, and a guard against a replaced file. Knows no table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sqlite3 import Connection as SqliteConnection
from sqlite3 import Error as SqliteError

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prefix_store import migrations
from prefix_store.database import postgres
from prefix_store.database.files import DatabaseFiles
from prefix_store.errors import StorageFailure

BUSY_TIMEOUT_S = 5
_UPGRADE_TIMEOUT_S = 60


class Database:
    """An SQLite or PostgreSQL database. Thread-safe. Raises `StorageFailure` on any error."""

    def __init__(self, url: str, *, may_create: bool) -> None:
        """`may_create`: create missing tables; otherwise they are a `StorageFailure`."""
        self._files = DatabaseFiles(make_url(url))
        self.engine = _open(url, self._files)
        self.after_write: Callable[[], None] = _nothing
        """Called when a change is durable, before `write` returns."""
        try:
            self._prepare(may_create)
        except StorageFailure:
            self.close()
            raise

    def close(self) -> None:
        """Close the idle connections."""
        self.engine.dispose()
        self._files.close()

    def check(self) -> None:
        """Raise `StorageFailure` if a file of the database was deleted or replaced."""
        with _refused():
            self._files.check()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Connection for single statements, each with its own snapshot."""
        with _refused(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def read_at_once(self) -> Iterator[Connection]:
        """Connection for statements that must all see the same snapshot."""
        reader = self.engine.execution_options(at_once=True)
        with _refused(), reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self, patience_s: int = BUSY_TIMEOUT_S) -> Iterator[Connection]:
        """Run one transaction: durable when the block ends, rolled back if it raises.

        `patience_s`: how long PostgreSQL waits for another writer.
        """
        writer = self.engine.execution_options(writes=True, patience_s=patience_s)
        with _refused():
            self._files.check()
            with writer.begin() as connection:
                yield connection
            self._files.check()  # what was written to a deleted file is lost
        self.after_write()

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], None]]:
        """Yield a function that waits for the next change by any client, for at most n seconds."""
        if self.engine.dialect.name != "postgresql":
            yield time.sleep
            return
        with _refused(), postgres.listening(self.engine) as wait:
            yield wait

    def _prepare(self, may_create: bool) -> None:
        with self.read() as connection:
            is_current = migrations.is_current(connection)
            if not is_current and not may_create and migrations.is_empty(connection):
                raise StorageFailure(
                    "the registry's database is missing or empty, although there are blobs: "
                    "restore it, or move the blobs away to start afresh"
                )
        if not is_current:
            with self.write(_UPGRADE_TIMEOUT_S) as connection:
                migrations.upgrade(connection)
        with _refused():
            self._files.open()


def _open(url: str, files: DatabaseFiles) -> Engine:
    """Open an engine whose commits are durable."""
    if (parsed := make_url(url)).get_backend_name() != "sqlite":
        return postgres.open_engine(parsed)
    engine = create_engine(url, pool_size=16, max_overflow=64)
    event.listen(engine, "do_connect", files.check)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: SqliteConnection, record: object) -> None:
    connection.isolation_level = None  # keep sqlite3 from starting its own transactions
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses acknowledged versions when the power fails.
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    # A transaction that reads before it writes fails at once if another writer commits in between;
    # BEGIN IMMEDIATE waits instead. Single statements need no BEGIN.
    options = connection.get_execution_options()
    if options.get("writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif options.get("at_once"):
        connection.exec_driver_sql("BEGIN")


def _nothing() -> None:
    pass


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout, OSError, SqliteError) as error:
        # Error messages can contain hosts and paths; SQLite's error names cannot.
        reason = getattr(getattr(error, "orig", error), "sqlite_errorname", type(error).__name__)
        raise StorageFailure(f"the registry's database failed: {reason}") from error
