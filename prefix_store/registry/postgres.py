"""What PostgreSQL needs to be what SQLite is: one writer at a time, patience with an end, and word
of every change to all who share the registry."""

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
"""The advisory lock that whoever writes holds to the end of the transaction."""
_LINK = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    # A peer that is gone without a word is noticed within seconds, not after the kernel's hours.
    "keepalives_idle": 3,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "foreword",
}


def open_engine(url: URL) -> Engine:
    """Raises `StorageFailure` where the driver is not installed."""
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
    # Numbers are given without a gap, quotas are exact, and a later row of the audit is a later
    # commit: what a server has read up to one row, it need not read again.
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER})")
    connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")  # sent when it commits, and only then


@contextmanager
def listening(engine: Engine) -> Iterator[Callable[[float], None]]:
    """Call what it yields to wait until somebody has written, or so many seconds have passed.

    A pooler that lends connections by transaction passes nothing on: then it is always the latter.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"LISTEN {_CHANNEL}")
        connection.detach()  # nobody else should get it from the pool
        driver: Any = connection.connection.dbapi_connection

        def wait(timeout_s: float) -> None:
            try:
                for _ in driver.notifies(timeout=timeout_s, stop_after=1):
                    pass
            except driver.Error as error:
                reason = type(error).__name__
                raise StorageFailure(f"the registry's database is gone: {reason}") from error

        yield wait
