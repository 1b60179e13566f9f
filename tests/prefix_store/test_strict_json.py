"""JSON with one reading, of bounded depth and a bounded number of values."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from prefix_store import strict_json
from prefix_store.strict_json import (
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_ITEMS,
    MAX_VALUES,
    TooManyValues,
    parse,
)


def listed(item: str, num_items: int) -> bytes:
    return f"[{','.join([item] * num_items)}]".encode()


@pytest.mark.parametrize("item", ["[]", "{}", '""', '"a\\"b\\\\"', '{"a":1}', '[["x"]]'])
def test_more_values_than_anybody_means_are_not_made(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "json", None)  # nothing is parsed

    with pytest.raises(TooManyValues):
        parse(listed(item, MAX_VALUES))


def test_numbers_are_not_counted_and_neither_is_what_stands_in_texts() -> None:
    assert parse(listed("12345", 3 * MAX_VALUES)) == [12345] * 3 * MAX_VALUES
    text = '[{"' * MAX_VALUES + "\\"
    assert parse(json.dumps([text, "\\", '"']).encode()) == [text, "\\", '"']


def test_numbers_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    most = listed("1", MAX_ITEMS + 1)
    assert len(parse(most)) == MAX_ITEMS + 1

    monkeypatch.setattr(strict_json, "json", None)  # nothing is parsed
    with pytest.raises(TooManyValues, match="1000000 values"):
        parse(most.replace(b"]", b",1]"))


def test_as_many_values_as_are_allowed_are_taken() -> None:
    assert len(parse(listed("[]", MAX_VALUES - 1))) == MAX_VALUES - 1


def test_an_object_has_a_bounded_number_of_fields() -> None:
    fields = {str(i): i for i in range(MAX_FIELDS)}

    assert parse(json.dumps(fields).encode()) == fields
    with pytest.raises(TooManyValues, match="fields"):
        parse(json.dumps(fields | {"one": "more"}).encode())


@pytest.mark.parametrize("text", ["\U0001f600", "\\ud800", "é", "\ue000"])
def test_escapes_are_texts(text: str) -> None:
    assert parse(json.dumps(text).encode()) == text


@pytest.mark.parametrize(
    "raw",
    [rb'"\ud800"', rb'"\uDC00"', rb'{"a": ["x\udbff"]}', rb'{"\udead": 1}', rb'"\\\ud800"'],
)
def test_half_a_character_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        parse(raw)


@pytest.mark.parametrize("raw", [b'"', b'\\"', b"[", b'["a]', b'["a",\\"b"]'])
def test_what_is_no_json_is_refused_however_it_is_counted(raw: bytes) -> None:
    with pytest.raises(ValueError, match="at character"):
        parse(raw)


def lists(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def objects(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


@pytest.mark.parametrize("nested", [lists, objects])
def test_so_deep_and_no_deeper(nested: Callable[[int], bytes]) -> None:
    parse(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 240, 900, MAX_VALUES // 3):
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            parse(nested(depth))


def test_what_stands_side_by_side_or_in_a_text_is_not_nested() -> None:
    assert len(parse(b"[" + b"[[]]," * 500 + b"{}]")) == 501
    assert parse(b'"' + lists(500) + b'"') == lists(500).decode()
