"""JSON with one reading: what two parsers could understand differently is refused."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

MAX_DIGITS = 32
MAX_VALUES = 100_000
"""Texts, names of fields among them, lists and objects: what takes time and memory to make and to
check. Not numbers: token ids come by the hundred thousand."""
MAX_FIELDS = 2048
"""Of one object."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class TooManyValues(ValueError):
    """More values than anything that is meant well has."""


class NonFiniteNumber(ValueError):
    """NaN or Infinity, which some writers of JSON produce and its grammar does not have."""


def parse(data: bytes) -> Any:
    """UTF-8 JSON without duplicate keys, NaN or lone surrogates, of a bounded number of values.

    Raises `ValueError`, whose message holds none of the data. On a thread it leaves the others
    their turns: what runs in C and could be long calls Python in between.
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
        # Text that cannot be encoded would fail later, in the tokenizer or in a database. Where the
        # bytes are UTF-8, only an escape can bring it.
        if _SURROGATE.search(data):
            for piece in _encoder.iterencode(value):
                piece.encode()
    except UnicodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


_encoder = json.JSONEncoder(ensure_ascii=False)


def _check_num_values(data: bytes) -> None:
    """Before any of them is made. Counts too few in what is no JSON, which fails later."""
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    num_values = unescaped.count(b'"') // 2
    if num_values <= MAX_VALUES:
        outside = b"".join(unescaped.split(b'"')[::2])
        num_values += outside.count(b"[") + outside.count(b"{")
    if num_values > MAX_VALUES:
        raise TooManyValues(f"more than {MAX_VALUES} texts, lists and objects")


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
