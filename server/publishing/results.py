"""States and results of uploads."""

from __future__ import annotations

from dataclasses import dataclass

from prefix_store.manifest import Check, Manifest
from prefix_store.registry.preconditions import CurrentActivation


@dataclass(frozen=True, slots=True)
class Preflight:
    """State of the task when an upload started."""

    is_new_task: bool
    activation: CurrentActivation


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A new version, durably stored."""

    manifest: Manifest
    is_active: bool
    is_new_task: bool
    warning: str | None
    """Checks that did not pass, or why the prefix is not loaded (the first request loads it)."""


@dataclass(frozen=True, slots=True)
class DryRunResult:
    """The version that a push would have made, and its memory needs."""

    pushed: PublishedVersion
    num_device_bytes: int
    fits: bool
    """Whether it fits on the device, next to what is in use there."""
    evicted: list[str]
    """Prefixes that would be evicted for it."""


def failed_checks(checks: tuple[Check, ...]) -> str | None:
    """Describe failed checks that did not cause a refusal; None if all passed."""
    return "; ".join(check.detail for check in checks if not check.passed) or None
