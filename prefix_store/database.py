"""Transactions on the database that the registry, the keys and the audit share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from prefix_store.errors import StorageFailure
from prefix_store.schema import for_writing, open_database


class Database:
    """Safe to share between threads. Raises `StorageFailure` where the database refuses."""

    def __init__(self, url: str) -> None:
        self.engine = open_database(url)
        self._writer = for_writing(self.engine)

    def close(self) -> None:
        """Close the idle connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """For single statements: each sees one state of the database."""
        with _refused(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: durable where the block ends, undone where it raises."""
        with _refused(), self._writer.begin() as connection:
            yield connection


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeout) as error:
        # The database's own words can name hosts and paths; SQLite's error names cannot.
        reason = getattr(getattr(error, "orig", None), "sqlite_errorname", type(error).__name__)
        raise StorageFailure(f"the registry's database refused: {reason}") from error
