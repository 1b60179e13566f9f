"""Traffic splits, and how the versions do that share it."""

from __future__ import annotations

from typing import TypedDict

from pydantic import Field

from foreword_client.types.base import Answer
from foreword_client.types.versions import Evaluation, RollbackRule


class RollbackOptions(TypedDict, total=False):
    """When a split ends by itself: any of the conditions, met by any version but the active one."""

    error_rate_above: float | None
    """Part of the requests that end with an error, 0 to 1."""
    first_token_p95_ms_above: float | None
    total_p95_ms_above: float | None
    golden_fails: bool
    """Run the golden prompts again every few minutes."""
    min_requests: int
    """Requests of a version before its errors and times count. Default: 50."""


class Traffic(Answer):
    """Weights of the versions that share a task's traffic; None: the active version gets all."""

    task: str
    active_version: int | None = None
    weights: dict[int, int] | None = None
    rollback_if: RollbackRule | None = None
    """When the active version gets all traffic back."""
    warning: str | None = None
    """Why a prefix could not be loaded at once."""


class Percentiles(Answer):
    """Median and 95th percentile, in milliseconds."""

    p50: float
    p95: float


class VersionTraffic(Answer):
    """A version that gets traffic, and what happened to its requests in the last minutes."""

    version: int
    share: float
    """Part of the traffic that it gets, 0 to 1."""
    requests: int
    """Requests that were admitted and have ended."""
    errors: int
    """Those of them that ended with an error."""
    error_rate: float | None = None
    refused: int = 0
    """Further requests that were refused after the version was chosen for them."""
    first_token_ms: Percentiles | None = None
    total_ms: Percentiles | None = None
    evaluation: Evaluation | None = None


class TrafficReport(Traffic):
    """A split, and how its versions do, as far as the server that answers has seen."""

    rollback_reason: str | None = None
    """Why the last split ended by itself, until the next activation or split."""
    window_s: float = 0.0
    """The requests of so many seconds are counted."""
    versions: list[VersionTraffic] = Field([])
