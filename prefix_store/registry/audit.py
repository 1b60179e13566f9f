"""Audit log: one row per change, written in the change's transaction and chained by hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, insert, select, true, update

from prefix_store.database.database import Database
from prefix_store.database.schema import audit, audit_head
from prefix_store.digest import Digest
from prefix_store.errors import StorageFailure
from prefix_store.registry import rows

Action = Literal[
    "create_task",
    "set_profile",
    "delete_task",
    "push",
    "push_and_activate",
    "delete_version",
    "activate",
    "rollback",
    "rollback_error_rate",
    "rollback_first_token_p95",
    "rollback_total_p95",
    "rollback_golden",
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
    """Origin of a change."""

    key: str | None = None
    """Id of the API key."""
    peer: str | None = None
    request_id: str | None = None


NOBODY = Actor()
"""The server itself, or a library caller that names no actor."""


class Entry(BaseModel):
    """One row of the audit log."""

    model_config = ConfigDict(frozen=True)

    seq: int
    at: str
    by: str | None
    """Id of the key that made the change."""
    peer: str | None
    request_id: str | None
    action: str
    task: str | None
    version: int | None
    digest: str | None
    """Digest of the pushed artifact, or of the profile that was set."""
    key: str | None
    """Id of the key that was created or revoked."""
    prev_hash: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """End of the hash chain. A copy kept elsewhere reveals rows that were cut off later."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The first row that was altered or is missing."""

    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """Tasks that a range of audit rows changed, and whether it changed keys."""

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
    """Add a row in the transaction of the change itself: both are committed, or neither."""
    head = connection.execute(select(audit_head).with_for_update()).one_or_none()
    if head is None:
        raise StorageFailure("the end of the audit is missing, so that no change can be recorded")
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
    """Return the end of the chain. Raises `StorageFailure` if it is missing."""
    found = connection.execute(select(audit_head)).one_or_none()
    if found is None:
        raise StorageFailure("the end of the audit is missing")
    return Head(found.seq, found.hash)


def changed_since(connection: Connection, known: Head) -> Changes | None:
    """Return what the rows after `known` changed; None if `known` is not part of this chain."""
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
    """Read access to the audit log; only `append` writes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def head(self) -> Head:
        """Return the end of the chain. Raises `StorageFailure` if it is missing."""
        with self._database.read() as connection:
            return read_head(connection)

    def entries(self, after: int = 0, limit: int = 100) -> list[Entry]:
        """Return at most `limit` rows after row `after`, in order."""
        page = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)
        with self._database.read() as connection:
            return [Entry.model_construct(**row._mapping) for row in connection.execute(page)]

    def verify(self, anchor: Head | None = None) -> Broken | None:
        """Return the first row that was altered or is missing; None if the log is intact.

        `anchor`: an end of the chain kept outside of the database. Without one, anybody with write
        access to the database could replace the whole chain.
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
        return Broken(seq, "the row is missing")
    entry = {name: row[name] for name in Entry.model_fields if name not in ("prev_hash", "hash")}
    if row["prev_hash"] != before.hash or row["hash"] != _hash(before.hash, entry):
        return Broken(seq, "the row does not match its hash")
    if anchor is not None and anchor.seq == seq and anchor.hash != row["hash"]:
        return Broken(seq, "the row does not match the anchor")
    return None
