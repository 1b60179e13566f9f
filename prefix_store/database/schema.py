"""Table definitions of the registry; `migrations/` creates the tables."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes, also in databases without time zones."""

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
    # Sequence number of the activation in force.
    Column("active_seq", Integer),
    # Activations up to this one belong to an earlier, deleted task of the same name.
    Column("since_seq", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
    # Incremented with every change of the task or its versions, also when it is re-created.
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
    # Whether the prefix stays on the device.
    Column("pinned", Boolean, nullable=False, server_default=false()),
    # Size of the artifact. Null in rows written by servers without this column.
    Column("num_bytes", BigInteger),
    # How the version is asked. Null in rows written by servers without this column: such a version
    # is asked as its task's profile says.
    Column("definition", Text),
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
    # The rule by which a traffic split ends by itself, and why one did.
    Column("rollback_if", Text),
    Column("reason", Text),
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

# Stored answers to idempotent requests, by their idempotency key.
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

keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),
    # HMAC-SHA256 of the key; the key itself is not stored.
    Column("digest", LargeBinary(32), nullable=False),
    Column("grant", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("created_by", Text),
    Column("revoked_at", UtcDateTime),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    # Text, so that every database returns exactly what was hashed.
    Column("at", String(32), nullable=False),
    Column("by", Text),
    Column("peer", Text),
    Column("request_id", Text),
    Column("action", String(32), nullable=False),
    Column("task", String(63)),
    Column("version", Integer),
    Column("digest", String(71)),
    Column("key", String(12)),
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
)

# One row: the end of the `audit` chain. Locked by writers while they append.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
)
