"""A database: how it is opened, its transactions, and which file it is. Knows no table."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sqlite3 import Connection as SqliteConnection

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prefix_store import migrations
from prefix_store.errors import StorageFailure
from prefix_store.registry import postgres

BUSY_TIMEOUT_S = 5
_UPGRADE_TIMEOUT_S = 60


class Database:
    """Safe to share between threads. Raises `StorageFailure` where the database refuses."""

    def __init__(self, url: str, *, may_create: bool) -> None:
        """`may_create`: make the tables where there are none; else that is a `StorageFailure`."""
        self._file = _File(url)
        self.engine = _open(url, self._file)
        self.after_write: Callable[[], None] = _nothing
        """Called when a change is durable, before whoever made it learns of that."""
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
    def read_at_once(self) -> Iterator[Connection]:
        """For statements that must all see the same state of the database."""
        reader = self.engine.execution_options(at_once=True)
        with _refused(), reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self, patience_s: int = BUSY_TIMEOUT_S) -> Iterator[Connection]:
        """One transaction: durable where the block ends, undone where it raises.

        `patience_s`: how long PostgreSQL waits for another writer.
        """
        writer = self.engine.execution_options(writes=True, patience_s=patience_s)
        with _refused():
            self._file.check()
            with writer.begin() as connection:
                yield connection
            self._file.check()  # what was written to a deleted file is lost
        self.after_write()

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], None]]:
        """Call what it yields to wait for a change, by whomever, and at most so many seconds."""
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
                    "the registry's database is missing or empty, though there are blobs: put it "
                    "back, or move the blobs away to begin anew"
                )
        if not is_current:
            with self.write(_UPGRADE_TIMEOUT_S) as connection:
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
    if (parsed := make_url(url)).get_backend_name() != "sqlite":
        return postgres.open_engine(parsed)
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
    # between; one that begins as a writer waits. Single statements need no BEGIN.
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
    except (DBAPIError, PoolTimeout, OSError) as error:
        # The database's own words can name hosts and paths; SQLite's error names cannot.
        reason = getattr(getattr(error, "orig", None), "sqlite_errorname", type(error).__name__)
        raise StorageFailure(f"the registry's database refused: {reason}") from error
