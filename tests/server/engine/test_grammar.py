"""Grammars: the limits of their compile, what they accept, and the cache of compiled ones."""

from __future__ import annotations

import time
from typing import Any

import pytest

from server.engine import grammar
from server.engine.grammar import ByteBoundedCache, GrammarError, Vocabulary
from tests.server.fakes import make_transformers_tokenizer, make_vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "optional": lambda: object_grammar({"properties": {f"p{i}": {} for i in range(3000)}}),
    "nested": lambda: object_grammar(nested(300)),
    "crossed": lambda: object_grammar(
        {"allOf": [{"properties": {f"p{i}": {}}} for i in range(900)]}
    ),
    "multiple": lambda: object_grammar({"type": "integer", "multipleOf": 999_999_937}),
    "remote": lambda: object_grammar({"$ref": "http://127.0.0.1:1/schema"}),
    "endless": lambda: object_grammar({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    "nothing": lambda: grammar.from_regex(r"[^\s\S]"),
    "letters": lambda: grammar.from_regex("|".join(rf"\p{{L}}{{1,{i}}}" for i in range(1, 2000))),
    "parentheses": lambda: grammar.from_regex("(" * 20_000 + ")" * 20_000),
}


def object_grammar(schema: dict[str, Any]) -> str:
    return grammar.from_json_schema({"type": "object"} | schema)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_that_is_too_expensive_is_refused_quickly(
    vocabulary: Vocabulary, name: str
) -> None:
    form = HOSTILE[name]()
    assert len(form) <= 2 * grammar.MAX_GRAMMAR_BYTES
    before_s = time.process_time()

    with pytest.raises(GrammarError):
        vocabulary.compile(form)

    assert time.process_time() - before_s < 5, "generous, for slow machines"


def test_json_is_on_one_line_unless_the_schema_says_otherwise(vocabulary: Vocabulary) -> None:
    schema: dict[str, Any] = {
        "type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "required": ["a", "b"],
    }  # fmt: skip
    free = schema | {"x-guidance": {"whitespace_flexible": True}}

    assert accepts(vocabulary, object_grammar(schema), '{"a": 1, "b": 2}')
    assert not accepts(vocabulary, object_grammar(schema), '{"a": 1, \n"b": 2}')
    assert accepts(vocabulary, object_grammar(free), '{"a": 1, \n"b": 2}')


def accepts(vocabulary: Vocabulary, form: str, text: str) -> bool:
    tokenizer = make_transformers_tokenizer()
    matcher = vocabulary.compile(form)
    for token_id in tokenizer(text, add_special_tokens=False).input_ids:
        matcher.accept(token_id)
    return matcher.matcher.is_accepting() and matcher.error is None


def test_the_cache_keeps_the_most_recently_used_within_its_bytes() -> None:
    cache = ByteBoundedCache[int](10, len)
    for i, form in enumerate(["aaaa", "bbbb", "cc"]):
        cache.put(form, i)
    cache.get("aaaa")
    cache.put("ddd", 3)

    assert [cache.get(form) for form in ("aaaa", "bbbb", "cc", "ddd")] == [0, None, 2, 3]
    assert cache.num_bytes == 9
    cache.put("e" * 11, 4)
    assert cache.num_bytes == 0
