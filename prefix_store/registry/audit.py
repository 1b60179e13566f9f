"""Who changed what: one row for every change, in its transaction, chained by hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, insert, select, true, update

from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure
from prefix_store.registry import rows
from prefix_store.registry.database import Database
from prefix_store.registry.schema import audit, audit_head

Action = Literal[
    "create_task",
    "set_profile",
    "delete_task",
    "push",
    "push_and_activate",
    "delete_version",
    "activate",
    "rollback",
    "set_traffic",
    "pin",
    "unpin",
    "create_key",
    "revoke_key",
]

_BEFORE_THE_FIRST = "0" * 64
_CHUNK = 1000


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for a change."""

    key: str | None = None
    """The key's id."""
    peer: str | None = None
    request_id: str | None = None


NOBODY = Actor()
"""The server itself, or a library's caller that says nothing."""


class Entry(BaseModel):
    """One row of the audit."""

    model_config = ConfigDict(frozen=True)

    seq: int
    at: str
    by: str | None
    """The id of the key that asked for it."""
    peer: str | None
    request_id: str | None
    action: str
    task: str | None
    version: int | None
    digest: str | None
    """Of the artifact that was pushed, or of the profile that was set."""
    key: str | None
    """The key that was created or revoked."""
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain ends. Kept somewhere else, it tells whether the end was cut off later."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first row that is not as it was written, or not there."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What rows of the audit are about."""

    tasks: frozenset[str]
    keys: bool


def append(
    connection: Connection,
    by: Actor,
    action: Action,
    *,
    task: str | None = None,
    version: int | None = None,
    digest: Digest | None = None,
    key: str | None = None,
) -> None:
    """Write down a change in its own transaction: both happen, or neither."""
    head = connection.execute(select(audit_head).with_for_update()).one_or_none()
    if head is None:
        raise StorageFailure("the end of the audit is missing: nothing is changed without it")
    entry = {
        "seq": head.seq + 1,
        "at": rows.now().isoformat(timespec="microseconds"),
        "by": by.key,
        "peer": by.peer,
        "request_id": by.request_id,
        "action": action,
        "task": task,
        "version": version,
        "digest": None if digest is None else str(digest),
        "key": key,
    }
    hash = _hash(head.hash, entry)
    connection.execute(insert(audit).values(**entry, prev_hash=head.hash, hash=hash))
    connection.execute(update(audit_head).values(seq=entry["seq"], hash=hash))


def read_head(connection: Connection) -> Head:
    """Raises `StorageFailure` where the chain has no end."""
    found = connection.execute(select(audit_head)).one_or_none()
    if found is None:
        raise StorageFailure("the end of the audit is missing")
    return Head(found.seq, found.hash)


def changed_since(connection: Connection, known: Head) -> Changes | None:
    """What the rows behind `known` have changed; None if it is not part of this chain."""
    query = select(audit.c.hash).where(audit.c.seq == known.seq)
    if connection.scalar(query) != (known.hash if known.seq else None):
        return None
    since = select(audit.c.task, audit.c.key).where(audit.c.seq > known.seq).distinct()
    found = connection.execute(since).all()
    tasks = frozenset(row.task for row in found if row.task is not None)
    return Changes(tasks, any(row.key is not None for row in found))


def _hash(prev_hash: str, entry: Mapping[str, Any]) -> str:
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(f"{prev_hash}{text}".encode()).hexdigest()


class AuditLog:
    """Reads the audit; it is written by `append` alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def head(self) -> Head:
        """Raises `StorageFailure` where the chain has no end."""
        with self._database.read() as connection:
            return read_head(connection)

    def entries(self, after: int = 0, limit: int = 100) -> list[Entry]:
        """At most `limit` rows behind the row `after`, in order."""
        page = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)
        with self._database.read() as connection:
            return [Entry.model_construct(**row._mapping) for row in connection.execute(page)]

    def verify(self, anchor: Head | None = None) -> Broken | None:
        """The first row that is not as it was written; None if all are.

        `anchor`: an end of the chain that was kept outside of the database. Without one, whoever
        can write to the database can write a whole new chain.
        """
        chain = (
            select(audit, audit_head.c.seq.label("last"), audit_head.c.hash.label("last_hash"))
            .select_from(audit_head.outerjoin(audit, true()))
            .order_by(audit.c.seq)
            .execution_options(yield_per=_CHUNK)
        )  # one statement: it sees one state of the chain and its end
        expected = Head(0, _BEFORE_THE_FIRST)
        stored: Head | None = None
        with self._database.read() as connection, connection.execute(chain) as found:
            for row in found.mappings():
                stored = Head(row["last"], row["last_hash"])
                if row["seq"] is None:
                    break
                broken = _compare(row, expected, anchor)
                if broken is not None:
                    return broken
                expected = Head(row["seq"], row["hash"])
        if stored is None:
            return Broken(expected.seq + 1, "the end of the audit is missing")
        if stored != expected:
            return Broken(expected.seq + 1, f"the chain must end at row {stored.seq}")
        if anchor is not None and anchor.seq > expected.seq:
            return Broken(expected.seq + 1, f"the anchor is row {anchor.seq}")
        return None


def _compare(row: Mapping[Any, Any], before: Head, anchor: Head | None) -> Broken | None:
    seq = before.seq + 1
    if row["seq"] != seq:
        return Broken(seq, "it is missing")
    entry = {name: row[name] for name in Entry.model_fields if name not in ("prev_hash", "hash")}
    if row["prev_hash"] != before.hash or row["hash"] != _hash(before.hash, entry):
        return Broken(seq, "it is not what was hashed")
    if anchor is not None and anchor.seq == seq and anchor.hash != row["hash"]:
        return Broken(seq, "it is not the anchor")
    return None
