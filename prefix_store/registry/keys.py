"""Keys: who may do what. A key is shown once; what is kept is an HMAC of it."""

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

from prefix_store.errors import LastAdminKey, StorageFailure, UnknownKey
from prefix_store.registry import audit, rows
from prefix_store.registry.audit import NOBODY, Actor
from prefix_store.registry.database import Database
from prefix_store.registry.schema import keys

Scope = Literal["generate", "read", "write", "promote", "delete", "admin"]
Glob = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_*?-]{1,63}$")]

CACHE_S = 5.0
"""So long a server may take a key that another one has revoked."""

MIN_REQUESTS_PER_S = 1e-6
"""One request in twelve days."""

_KEY = re.compile(rb"(fwd_([a-z2-7]{12})_[A-Za-z0-9_-]{43})_([0-9a-f]{8})")
_NO_DIGEST = bytes(32)
_MAX_REMEMBERED = 1024
_MIN_PEPPER_BYTES = 32


class Grant(BaseModel):
    """What a key allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    """For people. Nothing is looked up by it."""
    scopes: tuple[Scope, ...] = Field(min_length=1, max_length=6, fail_fast=True)
    tasks: tuple[Glob, ...] = Field(("*",), min_length=1, max_length=100, fail_fast=True)
    """Patterns of task names. Only `*` holds for the bare base model too."""
    expires_at: AwareDatetime | None = None
    requests_per_s: float | None = Field(None, ge=MIN_REQUESTS_PER_S, le=1e6, allow_inf_nan=False)
    burst: int | None = Field(None, ge=1, le=1_000_000)
    """Requests that may come at once. Default: those of a second, and at least one."""
    max_concurrency: int | None = Field(None, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _an_admin_sees_everything(self) -> Self:
        # Who may create keys may create one for all tasks; a narrower one would be a promise.
        if "admin" in self.scopes and not self.is_for_all_tasks:
            raise ValueError("a key with the scope admin is for all tasks")
        return self

    @property
    def is_for_all_tasks(self) -> bool:
        return "*" in self.tasks


class Key(Grant):
    """A key as it is kept and shown, without what makes it work."""

    requests_per_s: float | None = None
    """Keys of 0.1.0 may allow less than `MIN_REQUESTS_PER_S`."""
    id: str
    created_at: datetime
    created_by: str | None
    revoked_at: datetime | None

    def is_valid(self, at: datetime) -> bool:
        """Neither revoked nor expired. By the wall clock, as people set it."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A key as somebody presented it: its id, and a digest in its place."""

    id: str
    """Empty where it cannot be a key."""
    digest: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What is kept under an attempt's id."""

    key: Key
    digest: bytes
    read_s: float
    """Monotonic, before it was read."""


class HeldKeys(Protocol):
    """Keys without the database, such as `prefix_store.registry.replica.Replica` has them."""

    def find_key(self, id: str) -> Found | None: ...

    def keys_exist(self) -> bool: ...


class KeyStore:
    """Keys in the registry's database. Safe to call from any number of threads.

    To verify is three steps, so that a server does the first and the last where it is and only
    `find` on a thread: `read`, then `remembered` or `find`, then `check`. Whatever was presented,
    that is one HMAC and one comparison.
    """

    def __init__(self, database: Database, pepper: bytes, held: HeldKeys | None = None) -> None:
        """`held`: where keys are looked up, in place of the database."""
        self._database = database
        self._pepper = pepper
        self._held = held
        self._remembered: OrderedDict[tuple[str, bytes], Found] = OrderedDict()
        self._lock = Lock()

    def exist(self) -> bool:
        """Whether a key was ever created, revoked ones among them."""
        return keys_exist(self._database) if self._held is None else self._held.keys_exist()

    def create(self, grant: Grant, by: Actor = NOBODY) -> tuple[Key, str]:
        """A new key, and the text of it that is kept nowhere."""
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
        """All of them, oldest first."""
        with self._database.read() as connection:
            found = connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id))
            return [_as_key(row) for row in found]

    def revoke(self, id: str, by: Actor = NOBODY) -> None:
        """For good; again, it changes nothing. Raises `UnknownKey`, `LastAdminKey`.

        This process refuses the key at once, others after `CACHE_S`.
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
        """All three steps. None: no such key, or not valid any more."""
        attempt = self.read(text)
        return self.check(attempt, self.remembered(attempt) or self.find(attempt))

    def read(self, text: bytes) -> Attempt:
        """The digest of what was presented, whatever it was."""
        match = _KEY.fullmatch(text)
        if match is None or int(match[3], 16) != zlib.crc32(match[1]):
            return Attempt("", self._digest(b""))
        return Attempt(match[2].decode(), self._digest(match[1]))

    def remembered(self, attempt: Attempt) -> Found | None:
        """What a successful attempt found within `CACHE_S`."""
        with self._lock:
            found = self._remembered.get((attempt.id, attempt.digest))
        if found is None or time.monotonic() - found.read_s > CACHE_S:
            return None
        return found

    def find(self, attempt: Attempt) -> Found | None:
        """What is kept under the attempt's id."""
        if not attempt.id:
            return None
        if self._held is not None:
            return self._held.find_key(attempt.id)
        read_s = time.monotonic()
        with self._database.read() as connection:
            row = connection.execute(select(keys).where(keys.c.id == attempt.id)).one_or_none()
        return None if row is None else Found(_as_key(row), row.digest, read_s)

    def check(self, attempt: Attempt, found: Found | None) -> Key | None:
        """The key, if the attempt was the right one and the key is valid now."""
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
        raise LastAdminKey("this is the last admin key that is valid; create another one first")


def _as_key(row: Row[Any]) -> Key:
    made = {name: getattr(row, name) for name in ("id", "created_at", "created_by", "revoked_at")}
    return Key.model_validate(json.loads(row.grant) | made)


def read_keys(connection: Connection) -> dict[str, Found]:
    """All of them, by id."""
    read_s = time.monotonic()
    found = connection.execute(select(keys))
    return {row.id: Found(_as_key(row), row.digest, read_s) for row in found}


def keys_exist(database: Database) -> bool:
    """Whether a key was ever created; to know that takes no pepper."""
    with database.read() as connection:
        return connection.scalar(select(keys.c.id).limit(1)) is not None


def load_pepper(path: Path, *, create: bool) -> bytes:
    """The secret that digests of keys are made with. Raises `StorageFailure`.

    Without it the digests in the database tell nothing, also to whoever can guess keys. `create`
    makes a missing one, once, however many processes try.
    """
    try:
        if create and not path.exists():
            _create_pepper(path)
        pepper = path.read_bytes().strip()
        is_public = bool(path.stat().st_mode & 0o007)
    except OSError as error:
        raise StorageFailure(f"cannot read the pepper of the keys: {error.strerror}") from error
    if is_public:
        raise StorageFailure("everybody can read the pepper of the keys: take that right away")
    if len(pepper) < _MIN_PEPPER_BYTES:
        raise StorageFailure(f"the pepper of the keys has less than {_MIN_PEPPER_BYTES} bytes")
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
    """Unlike a rename, a link takes nobody's place."""
    try:
        os.link(temp, path)
    except FileExistsError:
        return
