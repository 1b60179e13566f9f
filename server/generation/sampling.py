"""Sampling parameters of one request: its own, then its task's, then the server's."""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from prefix_store.definition import Defaults
from prefix_store.sampling import MAX_TOKENS, SamplingFields
from server.engine.params import SamplingParams

MAX_PRIORITY = 1000
_ENGINE_PARAMS = frozenset(field.name for field in fields(SamplingParams))

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
LogitBias = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
        Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
    ],
    Field(max_length=1024, fail_fast=True),
]


class RequestOptions(SamplingFields):
    """The fields that every generating route takes. Those added here have no task-level default."""

    ignore_eos: bool | None = None
    min_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKENS, description="The text does not end before this many tokens."
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=10, allow_inf_nan=False)
    logit_bias: LogitBias | None = Field(None, description="By token id.")
    priority: int | None = Field(
        None,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Lower goes earlier, among the requests of one task. Default: 0.",
    )

    def options(self, **changes: Any) -> RequestOptions:
        """A copy without the other fields of a body. `changes` replace values."""
        values = {name: getattr(self, name) for name in RequestOptions.model_fields}
        return RequestOptions.model_construct(**values | changes)


def sampling_params(options: RequestOptions, defaults: Defaults, **fixed: Any) -> SamplingParams:
    """Combine a request's options with its task's defaults; `fixed` overrides both."""
    given = _engine_params(defaults) | _engine_params(options)
    biases = {int(token_id): bias for token_id, bias in (options.logit_bias or {}).items()}
    given |= {"logit_bias": tuple(biases.items()), "seed": seed_of(options, defaults)}
    return SamplingParams(**given | fixed)


def seed_of(options: RequestOptions, defaults: Defaults) -> int:
    """The request's seed, the task's, or a random one."""
    seeds = (options.seed, defaults.seed)
    return next((seed for seed in seeds if seed is not None), secrets.randbits(63))


def _engine_params(fields: SamplingFields) -> dict[str, Any]:
    """The values that are set and that the engine knows by the same name."""
    return {name: value for name, value in fields if value is not None and name in _ENGINE_PARAMS}
