"""A database: how it is opened, its transactions, and which file it is. Knows no table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Connection as SqliteConnection

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prefix_store import migrations
from prefix_store.errors import StorageFailure

BUSY_TIMEOUT_S = 5


class Database:
    """Safe to share between threads. Raises `StorageFailure` where the database refuses."""

    def __init__(self, url: str, *, may_create: bool) -> None:
        """`may_create`: make the tables where there are none; else that is a `StorageFailure`."""
        self._file = _File(url)
        self.engine = _open(url, self._file)
        self._writer = self.engine.execution_options(writes=True)
        try:
            self._prepare(may_create)
        except StorageFailure:
            self.close()
            raise

    def close(self) -> None:
        """Close the idle connections."""
        self.engine.dispose()

    def check(self) -> None:
        """Return if what is written would be there after a restart."""
        self._file.check()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """For single statements: each sees one state of the database."""
        with _refused(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: durable where the block ends, undone where it raises."""
        with _refused():
            self._file.check()
            with self._writer.begin() as connection:
                yield connection
            self._file.check()  # what was written to a deleted file is lost

    def _prepare(self, may_create: bool) -> None:
        with self.read() as connection:
            is_current = migrations.is_current(connection)
            if not is_current and not may_create and migrations.is_empty(connection):
                raise StorageFailure(
                    "the registry's database is missing or empty, though there are blobs: put it "
                    "back, or move the blobs away to begin anew"
                )
        if not is_current:
            with self.write() as connection:
                migrations.upgrade(connection)
        self._file.remember()


class _File:
    """The file of a SQLite database, which must stay the same while it is open.

    SQLite goes on writing to a file that was deleted, and makes a new one for the next connection.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        is_file = parsed.get_backend_name() == "sqlite" and parsed.database is not None
        self._path = parsed.database if is_file else None
        self._identity: tuple[int, int] | None = None

    def remember(self) -> None:
        """From now on it must be the file that it is now."""
        self._identity = self._look()

    def check(self, *_: object) -> None:
        """Raises `StorageFailure` if it is not that file any more."""
        if self._identity is not None and self._look() != self._identity:
            raise StorageFailure(
                "the registry's database was deleted or replaced: put it back, or start again"
            )

    def _look(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def _open(url: str, file: _File) -> Engine:
    """An engine whose transactions are durable when they are committed."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, pool_size=16, max_overflow=64)
    event.listen(engine, "do_connect", file.check)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: SqliteConnection, record: object) -> None:
    connection.isolation_level = None  # the module must not begin transactions of its own
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    # NORMAL loses acknowledged versions when the power fails.
    connection.execute("PRAGMA synchronous = FULL")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and then writes fails at once where another writer came
    # between; one that begins as a writer waits. Reads are single statements and need no BEGIN.
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout, OSError) as error:
        # The database's own words can name hosts and paths; SQLite's error names cannot.
        reason = getattr(getattr(error, "orig", None), "sqlite_errorname", type(error).__name__)
        raise StorageFailure(f"the registry's database refused: {reason}") from error
