"""Versions of a task: manifests, checks, where their prefixes are."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict, Field

from foreword_client.types.base import Answer, Message
from foreword_client.types.generation import Defaults


class PromptFormat(Answer):
    """How prompts that follow a prefix are made."""

    add_special_tokens: bool = True
    messages: list[Message] | None = None
    """The chat messages the prefix was computed from; a request's messages continue them."""


class Definition(Answer):
    """How a version is asked. Keeps fields of newer servers, so that it can be uploaded again."""

    model_config = ConfigDict(extra="allow")

    template: str | None = None
    """`{prompt}` and named fields, such as `Review: {prompt}\\nLanguage: {language}`."""
    chat: bool = False
    """A plain prompt becomes one user message of the base model's chat template."""
    defaults: Defaults = Defaults()
    """For what a request leaves out: sampling, stop strings, the form of answers."""
    prompt: PromptFormat | None = None


class Check(Answer):
    """One line of a verification report."""

    name: str
    passed: bool
    detail: str = ""


class GoldenPrompt(Answer):
    """A prompt, and how its greedy answer must begin."""

    prompt: str
    expect: str | list[int]


class Evaluation(Answer):
    """Scores measured when the prefix was trained."""

    num_examples: int
    scores: dict[str, float]


class Manifest(Answer):
    """One version of a task. Immutable."""

    task: str
    version: int
    digest: str
    num_virtual_tokens: int
    position_offset: int = 0
    num_bytes: int
    dtype: str = ""
    base_model: str = ""
    fingerprint: str = ""
    source_format: str = ""
    source_digest: str = ""
    """Digest of the uploaded bytes."""
    prompt: PromptFormat = PromptFormat()
    definition: Definition | None = None
    """How it is asked. None from servers before 0.2, where the task's profile says so."""
    golden: list[GoldenPrompt] = Field([])
    """Golden prompts that came with the upload."""
    evaluation: Evaluation | None = None
    verification: list[Check] = Field([])
    created_at: datetime
    created_by: str | None = None


class Uploaded(Manifest):
    """The version that a push created, and whether it is live."""

    active: bool = False
    warning: str | None = None
    """A check that failed, or why the prefix could not be loaded at once."""


class Rehearsal(Uploaded):
    """The version that a push would create, and the memory it would take."""

    device_bytes: int
    """Approximate bytes of its prefix on the device."""
    fits: bool
    """Whether it fits beside the prefixes that are in use or pinned."""
    evicted: list[str]
    """Digests of the prefixes that would be evicted for it."""


class Version(Manifest):
    """A version, and where its prefix is."""

    residency: str | None = None
    """`device`, `host` or `disk`."""
    pinned: bool = False
    """Whether it stays on the device."""


class Residency(Answer):
    """Where a version's prefix is."""

    task: str
    version: int
    digest: str
    residency: str
    """`device`, `host` or `disk`, as the engine last reported."""
    pinned: bool


class Report(Answer):
    """A new verification of a stored version."""

    task: str
    version: int
    digest: str
    passed: bool
    verification: list[Check]


class RollbackRule(Answer):
    """When a split ends by itself: any of the conditions, met by any version but the active one."""

    error_rate_above: float | None = None
    first_token_p95_ms_above: float | None = None
    total_p95_ms_above: float | None = None
    golden_fails: bool = False
    min_requests: int = 50
    """Requests of a version before its errors and times count."""


class Activation(Answer):
    """One line of a task's history."""

    seq: int
    version: int
    action: str
    """`activate`, `rollback` or `traffic`."""
    weights: dict[int, int] | None = None
    """Weights of the versions that share the traffic from here on."""
    rollback_if: RollbackRule | None = None
    """When this split ends by itself."""
    reason: str | None = None
    """Why a split ended by itself."""
    at: datetime
    by: str | None = None


class Versions(Answer):
    """All versions of a task, and its history of activations."""

    task: str
    active_version: int | None = None
    versions: list[Version]
    quarantined: list[int] = Field([])
    """Versions whose stored bytes have changed. Pushing the same bytes again restores them."""
    history: list[Activation] = Field([])


class Activated(Answer):
    """The version that is now live."""

    task: str
    active_version: int
    digest: str
    warning: str | None = None
    """Why the prefix could not be loaded at once."""
