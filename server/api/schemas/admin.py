"""Bodies and answers of tasks, versions, keys and the server. Every number has a bound."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from prefix_store.manifest import (
    Activation,
    Check,
    Manifest,
    Task,
)
from prefix_store.reference import MAX_VERSION
from prefix_store.registry.audit import Entry
from prefix_store.registry.keys import Key

TaskPath = Annotated[str, Path(description="The task's name.", examples=["summarize"])]
VersionPath = Annotated[int, Path(ge=1, le=MAX_VERSION, description="The version's number.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Entries in one page.")]


class Body(BaseModel):
    """A JSON body: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ActivateRequest(Body):
    """The version to make live."""

    version: int = Field(ge=1, le=MAX_VERSION)


class TaskDescription(Task):
    """A task, and whether its active prefix is in memory."""

    digest: str | None = Field(description="Digest of the active version.")
    residency: Literal["device", "host", "disk"] | None
    weights: dict[int, int] | None = Field(
        description="Weights of the versions that share the traffic."
    )


class TaskPage(BaseModel):
    """A page of tasks, in the order that was asked for."""

    tasks: list[Task]
    next_after: str | None = Field(description="Pass it as `after` for the next page.")


class VersionDescription(Manifest):
    """A version's manifest, and where its prefix is."""

    residency: Literal["device", "host", "disk"]
    pinned: bool = Field(description="Whether it stays on the device.")


class VersionResidency(BaseModel):
    """Where a version's prefix is."""

    task: str
    version: int
    digest: str
    residency: Literal["device", "host", "disk"]
    pinned: bool


class VerificationReport(BaseModel):
    """A new verification of a stored version."""

    task: str
    version: int
    digest: str
    passed: bool
    verification: list[Check]


class VersionList(BaseModel):
    """All versions of a task, and its history of activations."""

    task: str
    active_version: int | None
    versions: list[VersionDescription]
    quarantined: list[int] = Field(
        [],
        description="Versions whose stored bytes changed. Upload them again to restore them.",
    )
    history: list[Activation]


class ActivationResponse(BaseModel):
    """The version that is now live."""

    task: str
    active_version: int
    digest: str
    warning: str | None = Field(None, description="Why the prefix could not be loaded at once.")


class Uploaded(Manifest):
    """The new version, and whether it is live."""

    active: bool
    warning: str | None = Field(
        None,
        description="A check that failed, or why the prefix could not be loaded at once.",
    )


class Rehearsal(Uploaded):
    """The version that an upload would create. Nothing was changed."""

    device_bytes: int = Field(description="Approximate bytes of its prefix on the device.")
    fits: bool = Field(description="Whether it fits beside the prefixes that are in use or pinned.")
    evicted: list[str] = Field(description="Digests of the prefixes that would be evicted for it.")


class CreatedKey(Key):
    """A new key."""

    key: str = Field(description="The key itself. Keep it: the server does not store it.")


class KeyList(BaseModel):
    """All keys."""

    keys: list[Key]


class AuditPage(BaseModel):
    """A page of the audit."""

    entries: list[Entry]
    next_after: int | None = Field(description="Pass it as `after` for the next page.")


class ServerLimits(BaseModel):
    """Limits of this server."""

    max_model_len: int
    max_prefix_tokens: int
    max_num_seqs: int
    max_upload_bytes: int
    max_body_bytes: int


class Info(BaseModel):
    """The base model and the server around it."""

    version: str
    model: str
    fingerprint: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    dtype: str
    device: str
    attention: str
    eos_token_ids: list[int]
    chat_template: bool
    limits: ServerLimits


class Health(BaseModel):
    """Whether the server is alive or ready, and the reasons if not."""

    status: Literal["ok", "degraded", "unavailable"]
    reasons: list[str] = []
