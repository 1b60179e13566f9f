"""What is wrong with a request's fields, in words for people who did not write this server."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import Discriminator, ValidationError

Error = Mapping[str, Any]
"""One error of pydantic: `type`, `loc`, `msg`, `input`, `ctx`."""
NO_BRANCH = "no_branch"
"""Type of the error of a value that is of no kind that a union has."""

_MAX_NAME = 64
"""Characters of a name that is quoted, or compared with others: more of it costs time."""
_PLAIN = re.compile(rf"[A-Za-z0-9_.\-]{{1,{_MAX_NAME}}}")
_BRANCH = re.compile(r"\(.*\)|constrained-\w+|\w+\[.*\]")
"""The branch of a union, which is no part of a place: our `(texts)`, or pydantic's `list[int]`."""
_OF_KEY = "[key]"
"""A step after the name that is wrong."""
_EXPECTED = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be an object",
    "finite_number": "must be a finite number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of ordinary size",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "string_type": "must be a string",
    "tuple_type": "must be a list",
}
"""By the type of the error; what was sent instead is added."""
_BOUNDS = {
    "greater_than": ("must be above", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be below", "lt"),
    "less_than_equal": ("must be at most", "le"),
}
_PHRASES = {
    "extra_forbidden": "is no field of this request",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "string_pattern_mismatch": "must match {pattern}",
}
_KINDS: dict[type, str] = {
    bool: "true or false", dict: "an object", float: "a decimal number", int: "a number",
    list: "a list", str: "a string", tuple: "a list", type(None): "null",
}  # fmt: skip


def by_kind(kind_of: Callable[[Any], str | None], expected: str) -> Discriminator:
    """Selects the branch of a union by its tag, so that errors are those of one branch only.

    Tags are in parentheses, to be told from fields in the place of an error.
    """
    return Discriminator(kind_of, custom_error_type=NO_BRANCH, custom_error_message=expected)


def by_type(tags: Mapping[type, str], expected: str) -> Discriminator:
    """Like `by_kind`, for branches of different types."""
    return by_kind(lambda value: tags.get(type(value)), expected)


def sentence(error: Error, fields: Collection[str] = ()) -> str:
    """The place and what is wrong there. Nothing that was sent is quoted but harmless names.

    `fields` are those of the body: one of them may have been meant.
    """
    loc, message = error["loc"], what(error)
    if error["type"] == "value_error" and len(loc) <= 1:
        return message
    if error["type"] == "extra_forbidden":
        message += meant(str(loc[-1]), fields if len(loc) == 2 else ())
    colon = "" if _is_phrase(error) else ":"
    return f"{_subject(loc)}{colon} {message}"


def first(error: ValidationError, whole: str = "body") -> str:
    """The sentence on the first error. `whole` is what all of it is called."""
    details = error.errors(include_url=False)[0]
    return sentence({**details, "loc": ("body" if details["loc"] else whole, *details["loc"])})


def meant(name: str, fields: Iterable[str]) -> str:
    """A question for the field that was probably meant; empty where there is none like it."""
    if len(name) > _MAX_NAME:
        return ""
    return "".join(f"; did you mean `{found}`?" for found in get_close_matches(name, fields, 1))


def location(error: Error) -> list[str | int]:
    """The place as a path, as far as its names are harmless."""
    return [_plain(step) for step in error["loc"] if not _is_branch(step)]


def what(error: Error) -> str:
    """What is wrong, without the place."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind in _EXPECTED or kind == NO_BRANCH:
        return f"{_EXPECTED.get(kind, error['msg'])}, not {_kind_of(error['input'])}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"{words} {limit if isinstance(limit, int) else format(limit, 'g')}"
    if kind in ("string_too_short", "too_short"):
        return _too_short(context["min_length"], _unit(kind))
    if kind in ("string_too_long", "too_long"):
        return f"may have at most {context['max_length']} {_unit(kind)}"
    if kind in _PHRASES:
        return _PHRASES[kind].format_map(context)
    return str(error["msg"]).removeprefix("Value error, ")


def _is_phrase(error: Error) -> bool:
    """Whether what is wrong continues a sentence that begins with the place."""
    own = (*_EXPECTED, *_BOUNDS, *_PHRASES, NO_BRANCH)
    return error["type"] in own or error["type"].endswith(("too_short", "too_long"))


def _too_short(least: int, unit: str) -> str:
    return "must not be empty" if least == 1 else f"must have at least {least} {unit}"


def _unit(kind: str) -> str:
    return "characters" if kind.startswith("string") else "items"


def _kind_of(value: object) -> str:
    return next((words for kind, words in _KINDS.items() if type(value) is kind), "this")


def _subject(loc: Sequence[str | int]) -> str:
    source, *steps = [step for step in loc if not _is_branch(step)]
    if steps and steps[-1] == _OF_KEY:
        return f"a name in `{_written([_plain(step) for step in steps[:-2]])}`"
    if not steps:
        return f"the {source}"
    name = f"`{_written([_plain(step) for step in steps])}`"
    return name if source == "body" else f"{name} in the {source}"


def _written(steps: Sequence[str | int]) -> str:
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return written.removeprefix(".")


def _is_branch(step: str | int) -> bool:
    is_short = isinstance(step, str) and len(step) <= _MAX_NAME
    return is_short and _BRANCH.fullmatch(str(step)) is not None


def _plain(step: str | int) -> str | int:
    return step if isinstance(step, int) or _PLAIN.fullmatch(step) else "?"
