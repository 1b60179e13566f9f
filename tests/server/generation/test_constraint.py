"""A `format` of JSON Schema that the compiler does not know is an annotation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.engine.grammar import GrammarError, from_json_schema
from server.generation.constraint import _FORMATS, Constraint
from tests.server.fakes import make_transformers_tokenizer, make_vocabulary

VOCABULARY = make_vocabulary()
TOKENIZER = make_transformers_tokenizer()
UNKNOWN = {"type": "string", "format": "password"}


def allows(schema: dict[str, Any], value: object) -> bool:
    """Whether the grammar of a schema allows a value's JSON from start to end."""
    grammar = Constraint(json_schema=schema).grammar()
    assert grammar is not None
    matcher = VOCABULARY.compile(grammar).matcher
    token_ids = TOKENIZER(json.dumps(value))["input_ids"]
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (UNKNOWN, "any text"),
        ({"type": "integer", "format": "int32"}, 7),
        ({"type": "array", "items": UNKNOWN}, ["x"]),
        ({"anyOf": [UNKNOWN, {"type": "null"}]}, "x"),
        ({"type": "object", "properties": {"const": UNKNOWN}}, {"const": "x"}),
        ({"type": "object", "additionalProperties": UNKNOWN}, {"format": "x"}),
        ({"$defs": {"enum": UNKNOWN}, "$ref": "#/$defs/enum"}, "x"),
        ({"type": "object", "properties": {"format": UNKNOWN}}, {"format": "x"}),
    ],
    ids=lambda value: json.dumps(value)[:30],
)
def test_it_limits_nothing_wherever_it_stands(schema: dict[str, Any], value: object) -> None:
    assert allows(schema, value)


@pytest.mark.parametrize("keyword", ["const", "enum"])
def test_a_value_that_has_a_format_stays_as_it_is(keyword: str) -> None:
    value = {"format": "password"}
    schema = {keyword: [value] if keyword == "enum" else value}

    assert allows(schema, value)
    assert not allows(schema, {})


def test_the_compiler_follows_the_formats_that_it_knows() -> None:
    assert allows({"type": "string", "format": "email"}, "a@b.de")
    assert not allows({"type": "string", "format": "email"}, "a")
    for known in _FORMATS:
        VOCABULARY.compile(from_json_schema({"type": "string", "format": known}))
    with pytest.raises(GrammarError, match="Unknown format"):
        VOCABULARY.compile(from_json_schema(UNKNOWN))
