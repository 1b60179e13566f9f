"""Keys and the audit."""

from __future__ import annotations

from datetime import datetime
from typing import TypedDict

from pydantic import Field

from foreword_client.types.base import Answer


class KeyOptions(TypedDict, total=False):
    """How long a key is valid, and how much it allows. What is left out has no limit."""

    expires_at: datetime | None
    """With a time zone."""
    requests_per_s: float | None
    burst: int | None
    """Requests that may come at once."""
    max_concurrency: int | None
    """Requests that may run at once."""


class Key(Answer):
    """What a key allows; not the key itself."""

    id: str
    name: str
    scopes: list[str]
    """Of generate, read, write, promote, delete, admin."""
    tasks: list[str] = Field(["*"])
    """Patterns of task names; `*` is all, and the base model."""
    expires_at: datetime | None = None
    requests_per_s: float | None = None
    burst: int | None = None
    max_concurrency: int | None = None
    created_at: datetime
    created_by: str | None = None
    """The id of the key that made it."""
    revoked_at: datetime | None = None


class CreatedKey(Key):
    """A new key."""

    key: str
    """The key itself. It is shown this once."""


class KeyList(Answer):
    """All keys of a server."""

    keys: list[Key]


class AuditEntry(Answer):
    """One change: who asked for it, and what it was."""

    seq: int
    at: datetime
    by: str | None = None
    """The id of the key that asked for it."""
    peer: str | None = None
    request_id: str | None = None
    action: str
    task: str | None = None
    version: int | None = None
    digest: str | None = None
    """Of the artifact that was pushed, or of the profile that was set."""
    key: str | None = None
    """The id of the key that was created or revoked."""
    prev_hash: str
    hash: str


class AuditPage(Answer):
    """Some rows of the audit."""

    entries: list[AuditEntry]
    next_after: int | None = None
