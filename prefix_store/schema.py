"""The registry's tables, and how a database is opened: nothing else knows which one it is."""

from __future__ import annotations

from datetime import UTC, datetime
from sqlite3 import Connection as SqliteConnection

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    event,
    false,
)
from sqlalchemy.engine import make_url

BUSY_TIMEOUT_S = 5


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time in, the same out, also where the database knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        assert value is None or value.tzinfo is not None
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("profile", Text, nullable=False),
    # The row of `activations` that is in force.
    Column("active_seq", Integer),
    # Activations up to this one belong to an earlier, deleted task of the same name.
    Column("since_seq", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    # Goes up with every change of the task or its versions, and on when it is made anew.
    Column("revision", Integer, nullable=False, server_default="1"),
)

versions = Table(
    "versions",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("manifest", Text, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    # Its prefix stays on the device.
    Column("pinned", Boolean, nullable=False, server_default=false()),
    # Of the artifact. Null where a server wrote the row that does not know this column.
    Column("num_bytes", BigInteger),
)

activations = Table(
    "activations",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("task", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("action", String(16), nullable=False),
    # The activation that a rollback goes back to.
    Column("parent", Integer),
    Column("at", UtcDateTime, nullable=False),
    Column("by", Text),
    Index("activations_of_a_task", "task", "seq"),
    sqlite_autoincrement=True,
)

# The versions that share a task's traffic while an activation is in force.
traffic = Table(
    "traffic",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("weight", Integer, nullable=False),
)

# What was answered to requests that may come again, under the key their client gave them.
answers = Table(
    "answers",
    metadata,
    Column("principal", String(255), primary_key=True),
    Column("route", String(64), primary_key=True),
    Column("task", String(63), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_digest", String(71), nullable=False),
    Column("answer", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)


def open_database(url: str) -> Engine:
    """An engine whose transactions are durable when they are committed."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, pool_size=16, max_overflow=64)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def for_writing(engine: Engine) -> Engine:
    """The same engine, whose transactions take the write lock when they begin."""
    return engine.execution_options(writes=True)


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
