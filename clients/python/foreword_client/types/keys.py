"""Keys and the audit."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from pydantic import Field

from foreword_client.types.base import Answer


class KeyOptions(TypedDict, total=False):
    """Expiry and limits of a key. What is left out has no limit."""

    expires_at: datetime | None
    """A time with a time zone."""
    requests_per_s: float | None
    burst: int | None
    """Maximum number of requests that may arrive at once."""
    max_concurrency: int | None
    """Maximum number of requests that run at once."""


class Key(Answer):
    """The permissions of a key, without the key itself."""

    id: str
    name: str
    scopes: list[str]
    """Some of generate, read, write, promote, delete, admin."""
    tasks: list[str] = Field(["*"])
    """Patterns of task names; `*` matches all, and the base model."""
    expires_at: datetime | None = None
    requests_per_s: float | None = None
    burst: int | None = None
    max_concurrency: int | None = None
    created_at: datetime
    created_by: str | None = None
    """The id of the key that created it."""
    revoked_at: datetime | None = None


class CreatedKey(Key):
    """A new key."""

    key: str
    """The key itself, shown only once."""


class KeyList(Answer):
    """All keys of a server."""

    keys: list[Key]


class AuditEntry(Answer):
    """One change, and who made it."""

    seq: int
    at: datetime
    by: str | None = None
    """The id of the key that made the change."""
    peer: str | None = None
    request_id: str | None = None
    action: str
    task: str | None = None
    version: int | None = None
    digest: str | None = None
    """Digest of the artifact pushed, or of the profile set."""
    key: str | None = None
    """The id of the key that was created or revoked."""
    prev_hash: str
    hash: str


class AuditPage(Answer):
    """A page of the audit."""

    entries: list[AuditEntry]
    next_after: int | None = None
