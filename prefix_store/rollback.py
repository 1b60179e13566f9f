"""Rules by which a traffic split ends by itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Condition = Literal["error_rate", "first_token_p95", "total_p95", "golden"]
"""The condition of a rule that a version met."""


class RollbackRule(BaseModel):
    """When the active version gets all traffic back: any of the conditions, met by any other
    version of the split."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    error_rate_above: float | None = Field(None, ge=0, lt=1, allow_inf_nan=False)
    """Part of the requests that end with an error, 0 to 1."""
    first_token_p95_ms_above: float | None = Field(None, gt=0, allow_inf_nan=False)
    """95th percentile of the time to first token."""
    total_p95_ms_above: float | None = Field(None, gt=0, allow_inf_nan=False)
    """95th percentile of the time to the last token."""
    golden_fails: bool = False
    """Run the golden prompts again every few minutes."""
    min_requests: int = Field(50, ge=1, le=1_000_000)
    """Requests of a version before its errors and times count."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> RollbackRule:
        limits = (self.error_rate_above, self.first_token_p95_ms_above, self.total_p95_ms_above)
        if limits == (None, None, None) and not self.golden_fails:
            raise ValueError("a rule needs a condition, such as `error_rate_above`")
        return self
