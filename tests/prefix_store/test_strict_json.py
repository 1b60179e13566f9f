from __future__ import annotations

import pytest

from prefix_store import strict_json
from prefix_store.strict_json import MAX_DEPTH


def lists(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def objects(depth: int) -> bytes:
    return b'{"a":' * (depth - 1) + b"{}" + b"}" * (depth - 1)


@pytest.mark.parametrize("nested", [lists, objects])
def test_so_deep_and_no_deeper(nested: object) -> None:
    assert callable(nested)
    strict_json.parse(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 240, 900, 200_000):
        with pytest.raises(ValueError, match=f"nested more than {MAX_DEPTH} deep"):
            strict_json.parse(nested(depth))


def test_what_stands_side_by_side_or_in_a_text_is_not_nested() -> None:
    assert len(strict_json.parse(b"[" + b"[[]]," * 500 + b"{}]")) == 501
    assert strict_json.parse(b'"' + lists(500) + b'"') == lists(500).decode()
