"""Bodies and answers of traffic splits."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from prefix_store.definition import Evaluation
from prefix_store.registry.traffic import MAX_VERSIONS, MAX_WEIGHT
from prefix_store.rollback import RollbackRule
from server.api.schemas.admin import Body

VersionKey = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$")]

_EXAMPLE: dict[str, Any] = {
    "weights": {"3": 90, "4": 10},
    "rollback_if": {"error_rate_above": 0.05, "total_p95_ms_above": 2000, "golden_fails": True},
}


class TrafficRequest(Body):
    """Weights of the versions that share the traffic, and when the split ends by itself."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    weights: dict[VersionKey, Annotated[int, Field(ge=0, le=MAX_WEIGHT)]] = Field(
        min_length=1, max_length=MAX_VERSIONS, fail_fast=True
    )
    rollback_if: RollbackRule | None = Field(
        None,
        description="When the active version gets all traffic back. Left out: as in the split "
        "before this one; null: never.",
    )

    @model_validator(mode="after")
    def _some_weight_is_positive(self) -> TrafficRequest:
        if not any(self.weights.values()):
            raise ValueError("at least one weight must be above 0")
        return self


class TrafficResponse(BaseModel):
    """Weights of the versions that share the traffic. None: the active version gets all of it."""

    task: str
    active_version: int | None
    weights: dict[int, int] | None
    rollback_if: RollbackRule | None = Field(
        None, description="When the active version gets all traffic back."
    )
    warning: str | None = Field(None, description="Why a prefix could not be loaded at once.")


class Percentiles(BaseModel):
    """Median and 95th percentile, in milliseconds."""

    p50: float
    p95: float


class VersionTraffic(BaseModel):
    """A version that gets traffic, and what happened to its requests in the last minutes."""

    version: int
    share: float = Field(description="Part of the traffic that it gets, 0 to 1.")
    requests: int = Field(description="Requests that were admitted and have ended.")
    errors: int = Field(description="Those of them that ended with an error.")
    error_rate: float | None = Field(description="Errors by requests. None: no requests.")
    refused: int = Field(
        description="Further requests that were refused after the version was chosen for them."
    )
    first_token_ms: Percentiles | None = Field(description="Time to first token.")
    total_ms: Percentiles | None = Field(description="Time to the last token.")
    evaluation: Evaluation | None = Field(description="Scores that came with the upload.")


class TrafficReport(TrafficResponse):
    """The split, and how the versions do that get traffic, as far as this server has seen."""

    rollback_reason: str | None = Field(
        None, description="Why the last split ended by itself, until the next activation or split."
    )
    window_s: float = Field(description="The requests of so many seconds are counted.")
    versions: list[VersionTraffic]
