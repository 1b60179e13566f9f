"""Fields, with their bounds, that a request and a task's defaults share: how tokens are sampled,
and what form an answer has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.types import Strict

MAX_TOKENS = 1_000_000
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64


def _as_list(value: Any) -> Any:
    """One stop string is a list of one. Raises `ValueError` for too many."""
    if isinstance(value, list | tuple) and len(value) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings")
    return [value] if isinstance(value, str) else value


TokenId = Annotated[int, Strict(), Field(ge=0, lt=2**31)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = Annotated[
    tuple[StopString, ...],
    Field(max_length=MAX_STOP_STRINGS, fail_fast=True, strict=False),
    BeforeValidator(_as_list, json_schema_input_type=StopString | tuple[StopString, ...]),
]
StopTokenIds = Annotated[
    tuple[TokenId, ...], Field(max_length=MAX_STOP_TOKENS, fail_fast=True, strict=False)
]
ResponseFormat = Annotated[
    dict[str, Any],
    Field(
        description="In OpenAI's shape: the answer is JSON, optionally of a schema.",
        examples=[{"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}],
    ),
]
Regex = Annotated[str, StringConstraints(min_length=1, max_length=65_536)]
ChoiceText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Choice = Annotated[
    tuple[ChoiceText, ...],
    Field(min_length=1, max_length=1000, fail_fast=True, strict=False),
]
RankBy = Literal["sum", "mean"]


class Rank(BaseModel):
    """Texts to score after the prompt. The most likely one is the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: Annotated[
        tuple[ChoiceText, ...],
        Field(min_length=1, max_length=64, fail_fast=True, description="All different."),
    ]
    by: RankBy = Field("sum", description="Sum or mean of a text's token log-probabilities.")


class SamplingFields(BaseModel):
    """How tokens are sampled. A field that is None is left to the next in line: the request, the
    task's defaults, the server."""

    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(
        None, ge=0, le=2, allow_inf_nan=False, description="0: greedy."
    )
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="0: all tokens.")
    min_p: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Drops tokens below this share of the most likely token's probability.",
    )
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: StopStrings | None = Field(
        None, description=f"At most {MAX_STOP_STRINGS} strings; the text ends before the first."
    )
    stop_token_ids: StopTokenIds | None = Field(
        None, description="Tokens that end the text and are not part of it."
    )


class AnswerFields(BaseModel):
    """What form an answer has. At most one is set."""

    response_format: ResponseFormat | None = None
    regex: Regex | None = Field(None, description="The answer matches it from start to end.")
    choice: Choice | None = Field(None, description="The answer is generated, and is one of these.")
    rank: Rank | None = Field(
        None, description="Nothing is generated: the answer is the most likely of these texts."
    )
