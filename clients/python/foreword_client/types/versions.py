"""Versions of a task: manifests, checks, where their prefixes are."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from foreword_client.types.base import Answer, Message


class PromptFormat(Answer):
    """How prompts that follow a prefix are made."""

    add_special_tokens: bool = True
    messages: list[Message] | None = None
    """The chat messages the prefix was computed from; a request's messages continue them."""


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
    """What was measured before an upload, by whoever trained the prefix."""

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
    """Of the bytes that were uploaded."""
    prompt: PromptFormat = PromptFormat()
    golden: list[GoldenPrompt] = Field([])
    """Those that came with the upload."""
    evaluation: Evaluation | None = None
    verification: list[Check] = Field([])
    created_at: datetime
    created_by: str | None = None


class Uploaded(Manifest):
    """The version that a push made, and whether it answers already."""

    active: bool = False
    warning: str | None = None
    """A check that did not pass, or why the prefix could not be loaded at once."""


class Rehearsal(Uploaded):
    """The version that a push would make, and what it would take."""

    device_bytes: int
    """Of its prefix, on the device, about."""
    fits: bool
    """Beside the prefixes that are in use or pinned."""
    evicted: list[str]
    """Digests of the prefixes that would make room for it."""


class Version(Manifest):
    """A version, and where its prefix is."""

    residency: str | None = None
    """`device`, `host` or `disk`."""
    pinned: bool = False
    """It stays on the device."""


class Residency(Answer):
    """Where a version's prefix is."""

    task: str
    version: int
    digest: str
    residency: str
    """`device`, `host` or `disk`, as the engine last said."""
    pinned: bool


class Report(Answer):
    """What was checked of a stored version, just now."""

    task: str
    version: int
    digest: str
    passed: bool
    verification: list[Check]


class Activation(Answer):
    """One line of a task's history."""

    seq: int
    version: int
    action: str
    """`activate`, `rollback` or `traffic`."""
    weights: dict[int, int] | None = None
    """Of the versions that share the traffic from here on."""
    at: datetime
    by: str | None = None


class Versions(Answer):
    """All versions of a task, and the history of its active one."""

    task: str
    active_version: int | None = None
    versions: list[Version]
    quarantined: list[int] = Field([])
    """Those whose stored bytes have changed. Pushing them again heals them."""
    history: list[Activation] = Field([])


class Activated(Answer):
    """What answers from now on."""

    task: str
    active_version: int
    digest: str
    warning: str | None = None
    """Why the prefix could not be loaded at once."""
