"""A task's defaults: what older registries hold, and which fields the engine knows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import ValidationError

from prefix_store.definition import Defaults
from prefix_store.manifest import Profile
from prefix_store.sampling import Rank, SamplingFields
from server.engine.params import SamplingParams

OLD = {
    "max_tokens": 4, "temperature": 0.0, "top_p": None, "top_k": None, "seed": None, "stop": ["."],
    "response_format": None, "regex": None, "choice": None, "choices": None, "rank_by": None,
}  # fmt: skip
"""A task's defaults as a server of 0.1.1 stored them."""


@pytest.mark.parametrize(
    ("stored", "rank"),
    [
        ({}, None),
        ({"rank_by": "mean"}, None),
        ({"choices": ["a", "b"]}, Rank(texts=("a", "b"))),
        ({"choices": ["a", "b"], "rank_by": "mean"}, Rank(texts=("a", "b"), by="mean")),
    ],
)
def test_profiles_of_older_registries_are_read(stored: dict[str, Any], rank: Rank | None) -> None:
    profile = Profile.model_validate_json(json.dumps({"defaults": OLD | stored}))

    assert profile.defaults == Defaults(max_tokens=4, temperature=0.0, stop=(".",), rank=rank)
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_rank_under_both_names_is_refused() -> None:
    both = {"choices": ["a"], "rank": {"texts": ["b"]}}

    with pytest.raises(ValidationError, match="old name"):
        Defaults.model_validate(both)
    with pytest.raises(ValidationError):
        Defaults.model_validate({"choices": []})


def test_the_engine_knows_every_sampling_field() -> None:
    """By the same name; `stop` is matched in text, outside of the engine."""
    known = {field.name for field in dataclasses.fields(SamplingParams)}

    assert set(SamplingFields.model_fields) - known == {"stop"}
