"""Strict JSON parsing: rejects everything that two parsers could read differently."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

MAX_DIGITS = 32
MAX_VALUES = 100_000
"""Limit of strings (field names included), lists and objects, which cost time and memory to build
and check."""
MAX_ITEMS = 1_000_000
"""Limit of values of any kind. Token ids come by the hundred thousand."""
MAX_FIELDS = 2048
"""Limit per object."""
MAX_DEPTH = 100
"""Limit of nesting. Code that handles the value later recurses, and some libraries fail at 250."""
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class TooManyValues(ValueError):
    """The input has more values or fields than allowed."""


class NonFiniteNumber(ValueError):
    """NaN or Infinity: some serialisers write them, but they are not JSON."""


def parse(data: bytes) -> Any:
    """Parse UTF-8 JSON without duplicate keys, NaN or lone surrogates, and of bounded size.

    Raises `ValueError` with a message that contains none of the data. Safe to run on a thread:
    the hooks are Python functions, so that a long parse in C releases the GIL regularly.
    """
    _check_num_values(data)
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_int=_short_int,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
            _check_depth(value)
        # A lone surrogate would fail later, in the tokenizer or in a database. In UTF-8 input only
        # an escape sequence can produce one.
        if _SURROGATE.search(data):
            for piece in _encoder.iterencode(value):
                piece.encode()
    except UnicodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    return value


_encoder = json.JSONEncoder(ensure_ascii=False)


def _check_num_values(data: bytes) -> None:
    """Count before parsing. May undercount in invalid JSON, which the parser rejects anyway."""
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_texts = unescaped.count(b'"') // 2
    outside = b"".join(unescaped.split(b'"')[::2]) if num_texts <= MAX_VALUES else b""
    if num_texts + outside.count(b"[") + outside.count(b"{") > MAX_VALUES:
        raise TooManyValues(f"more than {MAX_VALUES} texts, lists and objects")
    if outside.count(b",") > MAX_ITEMS:
        raise TooManyValues(f"more than {MAX_ITEMS} values")


def _check_depth(value: Any) -> None:
    """Check the nesting level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for whole in level for part in _parts(whole) if isinstance(part, list | dict)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _parts(whole: list[Any] | dict[str, Any]) -> Iterable[Any]:
    return whole.values() if isinstance(whole, dict) else whole


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_FIELDS:
        raise TooManyValues(f"more than {MAX_FIELDS} fields in an object")
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _short_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _number(digits: str) -> float:
    return float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise NonFiniteNumber("a number is NaN or infinite")
