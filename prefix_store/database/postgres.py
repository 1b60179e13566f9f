"""PostgreSQL as a registry: one writer at a time, bounded waits, and notification of changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from prefix_store.errors import StorageFailure

CONNECT_TIMEOUT_S = 3
POOL_TIMEOUT_S = 5

_CHANNEL = "foreword"
_WRITER = 0x666F7265
"""Advisory lock that a writer holds until the end of its transaction."""
_LINK = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    # Detect a dead peer within seconds; the kernel's defaults take hours.
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "foreword",
}


def open_engine(url: URL) -> Engine:
    """Create the engine. Raises `StorageFailure` if the driver is not installed."""
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            pool_size=8,
            max_overflow=8,
            pool_timeout=POOL_TIMEOUT_S,
            connect_args={name: value for name, value in _LINK.items() if name not in url.query},
        )
    except ModuleNotFoundError:
        raise StorageFailure(
            "a registry in PostgreSQL needs psycopg: install foreword[postgres]"
        ) from None
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("at_once"):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    if not options.get("writes"):
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{options['patience_s']}s'")
    # Serialised writers give version numbers without gaps, exact quotas, and audit rows in commit
    # order, so that a replica never has to re-read rows that it has seen.
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")
    connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")  # sent when it commits, and only then


@contextmanager
def listening(engine: Engine) -> Iterator[Callable[[float], None]]:
    """Yield a function that waits for the next write, with a timeout in seconds.

    Transaction-level poolers do not forward notifications; then every wait times out.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"LISTEN {_CHANNEL}")
        connection.detach()  # keep the listening connection out of the pool
        driver: Any = connection.connection.dbapi_connection

        def wait(timeout_s: float) -> None:
            try:
                for _ in driver.notifies(timeout=timeout_s, stop_after=1):
                    pass
            except driver.Error as error:
                reason = type(error).__name__
                raise StorageFailure(
                    f"lost the connection to the registry's database: {reason}"
                ) from error

        yield wait
