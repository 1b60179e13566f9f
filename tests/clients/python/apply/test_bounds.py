"""A file of tasks is checked against the bounds that the server has."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from foreword_client.apply import models
from prefix_store import definition, manifest, rollback, sampling
from prefix_store.registry import traffic

BOUNDS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
    "minItems", "maxItems", "enum",
)  # fmt: skip
PAIRS = {
    "Rank": (models.Rank, sampling.Rank),
    "Defaults": (models.Defaults, definition.Defaults),
    "Limits": (models.Limits, manifest.TaskLimits),
    "GoldenPrompt": (models.GoldenPrompt, definition.GoldenPrompt),
    "RollbackRule": (models.RollbackRule, rollback.RollbackRule),
    "Settings": (models.Settings, manifest.Profile),
    "Definition": (models.Definition, definition.Definition),
}

UNWRITTEN = {"stop": {("maxItems", repr(sampling.MAX_STOP_STRINGS))}}
"""Bounds that the server's schema leaves out."""


def bounds(schema: Any) -> set[tuple[str, str]]:
    """Return all bounds in a schema, those of parts too."""
    if isinstance(schema, list):
        return set().union(*map(bounds, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {(name, repr(schema[name])) for name in BOUNDS if name in schema}
    below = (value for name, value in schema.items() if name not in ("examples", "default"))
    return own.union(*map(bounds, below))


@pytest.mark.parametrize("name", PAIRS)
def test_every_field_has_the_servers_bounds(name: str) -> None:
    ours, theirs = (kind.model_json_schema()["properties"] for kind in PAIRS[name])

    shared = ours.keys() & theirs.keys()
    assert shared == (ours.keys() if name == "Settings" else theirs.keys())
    for field in shared - {"template", "limits", "golden", "rank", "defaults", "prompt"}:
        assert bounds(ours[field]) == bounds(theirs[field]) | UNWRITTEN.get(field, set()), field


def test_versions_and_their_traffic_have_the_servers_bounds() -> None:
    def schema(kind: type[BaseModel]) -> Any:
        return kind.model_json_schema()["properties"]

    weight = schema(models.SharedVersion)["traffic"]
    assert weight["maximum"] == traffic.MAX_WEIGHT
    assert ("maxItems", repr(traffic.MAX_VERSIONS)) in bounds(schema(models.TaskSpec)["versions"])
    assert bounds(schema(models.VersionSpec)["template"]) == bounds(
        schema(definition.Definition)["template"]
    )
    assert ("maxItems", "16") in bounds(schema(models.Settings)["golden"])
