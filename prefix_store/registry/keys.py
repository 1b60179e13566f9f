"""API keys and their permissions. A key is shown once; only an HMAC of it is stored."""

from __future__ import annotations

import base64
import hmac
import json
import os
import re
import secrets
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal, Protocol, Self
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy import Connection, Row, insert, select, update

from prefix_store.database.database import Database
from prefix_store.database.schema import keys
from prefix_store.errors import LastAdminKey, StorageFailure, UnknownKey
from prefix_store.registry import audit, rows
from prefix_store.registry.audit import NOBODY, Actor

Scope = Literal["generate", "read", "write", "promote", "delete", "admin"]
Glob = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_*?-]{1,63}$")]

CACHE_S = 5.0
"""How long a server may still accept a key that another server has revoked."""

MIN_REQUESTS_PER_S = 1e-6
"""One request in twelve days."""

_KEY = re.compile(rb"(fwd_([a-z2-7]{12})_[A-Za-z0-9_-]{43})_([0-9a-f]{8})")
_NO_DIGEST = bytes(32)
_MAX_REMEMBERED = 1024
_MIN_PEPPER_BYTES = 32


class Grant(BaseModel):
    """Permissions and limits of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    """Label for people; not an identifier."""
    scopes: tuple[Scope, ...] = Field(min_length=1, max_length=6, fail_fast=True)
    tasks: tuple[Glob, ...] = Field(("*",), min_length=1, max_length=100, fail_fast=True)
    """Globs of task names. Only `*` includes the bare base model."""
    expires_at: AwareDatetime | None = None
    requests_per_s: float | None = Field(None, ge=MIN_REQUESTS_PER_S, le=1e6, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1, le=1_000_000)
    """Size of the token bucket. Default: the requests of one second, at least one."""
    max_concurrency: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _an_admin_sees_everything(self) -> Self:
        # An admin can create a key for all tasks, so restricting its own would protect nothing.
        if "admin" in self.scopes and not self.is_for_all_tasks:
            raise ValueError("a key with the scope admin is for all tasks")
        return self

    @property
    def is_for_all_tasks(self) -> bool:
        return "*" in self.tasks


class Key(Grant):
    """A key as stored and listed, without its secret."""

    requests_per_s: float | None = None
    """Keys of 0.1.0 may allow less than `MIN_REQUESTS_PER_S`."""
    id: str
    created_at: datetime
    created_by: str | None
    revoked_at: datetime | None

    def is_valid(self, at: datetime) -> bool:
        """Whether the key is neither revoked nor expired at this wall-clock time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A key as presented by a client: its id, and a digest instead of the secret."""

    id: str
    """Empty if the text is not a well-formed key."""
    digest: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A stored key and its digest."""

    key: Key
    digest: bytes
    read_s: float
    """Monotonic time just before it was read."""


class KeySource(Protocol):
    """Key lookup without the database, such as `prefix_store.registry.replica.Replica`."""

    def find_key(self, id: str) -> Found | None: ...

    def keys_exist(self) -> bool: ...


class KeyStore:
    """Keys in the registry's database. Thread-safe.

    Verification has three steps: `read`, then `remembered` or `find`, then `check`. Only `find` can
    block, so that a server runs the others on its event loop. Every attempt costs one HMAC and one
    comparison, whatever was presented.
    """

    def __init__(self, database: Database, pepper: bytes, source: KeySource | None = None) -> None:
        """`source` looks up keys instead of the database, if given."""
        self._database = database
        self._pepper = pepper
        self._source = source
        self._remembered: OrderedDict[tuple[str, bytes], Found] = OrderedDict()
        self._lock = Lock()

    def exist(self) -> bool:
        """Whether a key was ever created, including revoked ones."""
        return keys_exist(self._database) if self._source is None else self._source.keys_exist()

    def create(self, grant: Grant, by: Actor = NOBODY) -> tuple[Key, str]:
        """Create a key; return it and its text, which is not stored."""
        id = base64.b32encode(secrets.token_bytes(8))[:12].decode().lower()
        body = f"fwd_{id}_{secrets.token_urlsafe(32)}"
        values = {
            "id": id,
            "digest": self._digest(body.encode()),
            "grant": grant.model_dump_json(),
            "created_at": rows.now(),
            "created_by": by.key,
        }
        with self._database.write() as connection:
            row = connection.execute(insert(keys).values(**values).returning(keys)).one()
            audit.append(connection, by, "create_key", key=id)
            return _as_key(row), f"{body}_{zlib.crc32(body.encode()):08x}"

    def list(self) -> list[Key]:
        """Return all keys, oldest first."""
        with self._database.read() as connection:
            found = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))
            return [_as_key(row) for row in found]

    def revoke(self, id: str, by: Actor = NOBODY) -> None:
        """Revoke a key for good. Idempotent. Raises `UnknownKey`, `LastAdminKey`.

        This process rejects the key at once, others within `CACHE_S`.
        """
        with self._database.write() as connection:
            found = connection.execute(select(keys).with_for_update())
            all_keys = {row.id: _as_key(row) for row in found}
            if id not in all_keys:
                raise UnknownKey("there is no such key")
            if all_keys[id].revoked_at is not None:
                return
            _check_an_admin_is_left(all_keys, without=id)
            connection.execute(update(keys).where(keys.c.id == id).values(revoked_at=rows.now()))
            audit.append(connection, by, "revoke_key", key=id)
        with self._lock:
            for known in [known for known in self._remembered if known[0] == id]:
                del self._remembered[known]

    def verify(self, text: bytes) -> Key | None:
        """Run all three steps. None: no such key, or it is no longer valid."""
        attempt = self.read(text)
        return self.check(attempt, self.remembered(attempt) or self.find(attempt))

    def read(self, text: bytes) -> Attempt:
        """Parse and digest what a client presented, whatever it is."""
        match = _KEY.fullmatch(text)
        if match is None or int(match[3], 16) != zlib.crc32(match[1]):
            return Attempt("", self._digest(b""))
        return Attempt(match[2].decode(), self._digest(match[1]))

    def remembered(self, attempt: Attempt) -> Found | None:
        """Return the stored key that a successful attempt found less than `CACHE_S` ago."""
        with self._lock:
            found = self._remembered.get((attempt.id, attempt.digest))
        if found is None or time.monotonic() - found.read_s > CACHE_S:
            return None
        return found

    def find(self, attempt: Attempt) -> Found | None:
        """Look up the attempt's id."""
        if not attempt.id:
            return None
        if self._source is not None:
            return self._source.find_key(attempt.id)
        read_s = time.monotonic()
        with self._database.read() as connection:
            row = connection.execute(select(keys).where(keys.c.id == attempt.id)).one_or_none()
        return None if row is None else Found(_as_key(row), row.digest, read_s)

    def check(self, attempt: Attempt, found: Found | None) -> Key | None:
        """Return the key if the digests match and the key is valid now."""
        digest = _NO_DIGEST if found is None else found.digest
        is_same = hmac.compare_digest(attempt.digest, digest)
        if found is None or not is_same or not found.key.is_valid(rows.now()):
            return None
        with self._lock:
            self._remembered[attempt.id, attempt.digest] = found
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return found.key

    def _digest(self, body: bytes) -> bytes:
        return hmac.digest(self._pepper, body, "sha256")


def _check_an_admin_is_left(all_keys: dict[str, Key], *, without: str) -> None:
    at = rows.now()
    admins = {id for id, key in all_keys.items() if "admin" in key.scopes and key.is_valid(at)}
    if admins == {without}:
        raise LastAdminKey("this is the last valid admin key; create another one first")


def _as_key(row: Row[Any]) -> Key:
    made = {name: getattr(row, name) for name in ("id", "created_at", "created_by", "revoked_at")}
    return Key.model_validate(json.loads(row.grant) | made)


def read_keys(connection: Connection) -> dict[str, Found]:
    """Return all stored keys by id."""
    read_s = time.monotonic()
    found = connection.execute(select(keys))
    return {row.id: Found(_as_key(row), row.digest, read_s) for row in found}


def keys_exist(database: Database) -> bool:
    """Whether a key was ever created. Needs no pepper."""
    with database.read() as connection:
        return connection.scalar(select(keys.c.id).limit(1)) is not None


def load_pepper(path: Path, *, create: bool) -> bytes:
    """Read the HMAC secret of the key digests. Raises `StorageFailure`.

    Without it the digests in the database are useless even for guessing keys. `create` creates a
    missing one, exactly once even if several processes race.
    """
    try:
        if create and not path.exists():
            _create_pepper(path)
        pepper = path.read_bytes().strip()
        is_public = bool(path.stat().st_mode & 0o007)
    except OSError as error:
        raise StorageFailure(f"cannot read the pepper of the keys: {error.strerror}") from error
    if is_public:
        raise StorageFailure("the pepper of the keys is world-readable: remove that permission")
    if len(pepper) < _MIN_PEPPER_BYTES:
        raise StorageFailure(f"the pepper of the keys is shorter than {_MIN_PEPPER_BYTES} bytes")
    return pepper


def _create_pepper(path: Path) -> None:
    temp = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(32).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _link(temp, path)
    finally:
        temp.unlink()


def _link(temp: Path, path: Path) -> None:
    """Give the file its name. Unlike a rename, a link never replaces an existing file."""
    try:
        os.link(temp, path)
    except FileExistsError:
        return
