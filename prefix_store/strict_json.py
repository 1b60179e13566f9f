"""JSON with one reading: what two parsers could understand differently is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

MAX_DIGITS = 32


class NonFiniteNumber(ValueError):
    """NaN or Infinity, which some writers of JSON produce and its grammar does not have."""


def parse(data: bytes) -> Any:
    """UTF-8 JSON without duplicate keys, NaN or lone surrogates.

    Raises `ValueError`, whose message holds none of the data.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_int=_short_int,
            parse_constant=_refuse_constant,
        )
        # Text that cannot be encoded would fail later, in the tokenizer or in a database.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise ValueError("not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def _short_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise NonFiniteNumber("a number is NaN or infinite")
