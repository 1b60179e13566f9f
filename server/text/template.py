"""Prompts from trusted templates and untrusted texts of users, kept apart as parts."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

from server.errors import TemplateMismatch

PROMPT = "prompt"
"""The field that takes a request's prompt, or its one user message."""
MAX_PLACES = 1000
"""Fields of a template, each place counted: a prompt has two parts for each of them."""
MAX_NAMES = 65
"""Different fields of a template: those of a request and its prompt."""
MAX_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a prompt. Only in trusted parts are special tokens recognised."""

    text: str
    trusted: bool


def parse(template: str) -> list[tuple[str, str | None]]:
    """Split a template into pairs of text and the field that follows it, or None.

    Raises `TemplateMismatch` for braces without a partner, for fields that are not plain names, and
    for more of them than a request may fill.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        raise TemplateMismatch("a brace without its partner; write {{ or }} for a brace") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TemplateMismatch("a template's fields are plain names such as {prompt}")
    names = [name for _, name, _, _ in pieces if name is not None]
    if len(names) > MAX_PLACES or len(set(names)) > MAX_NAMES:
        raise TemplateMismatch(
            f"a template has at most {MAX_NAMES} different fields, in at most {MAX_PLACES} places"
        )
    if max(map(len, names), default=0) > MAX_NAME_CHARS:
        raise TemplateMismatch(f"a field's name has at most {MAX_NAME_CHARS} characters")
    return [(literal, name) for literal, name, _, _ in pieces]


def render(template: str, fields: dict[str, str]) -> list[Part]:
    """Fill in the fields of a task's template. Raises `TemplateMismatch`."""
    pieces = parse(template)
    wanted = _fields_of(pieces)
    if fields.keys() != wanted:
        raise TemplateMismatch(_difference(wanted, set(fields)))
    return [part for literal, name in pieces for part in _filled(literal, name, fields)]


def fill(template: str | None, prompt: str | None, fields: dict[str, str]) -> list[Part]:
    """The parts of a prompt: the task's template filled in, or the prompt as it is without one.

    Clients that always send a prompt leave it empty where the template has no {prompt}. Raises
    `TemplateMismatch`.
    """
    if template is not None:
        is_left_out = prompt == "" and PROMPT not in _fields_of(parse(template))
        given = {} if prompt is None or is_left_out else {PROMPT: prompt}
        if PROMPT in fields and given:
            raise TemplateMismatch("`prompt` is given twice: beside and among the fields")
        return render(template, given | fields)
    if fields:
        raise TemplateMismatch("`fields` are given, and the task has no template")
    assert prompt is not None, "the API takes no request without a prompt, messages or fields"
    return [Part(prompt, trusted=False)]


def _fields_of(pieces: Sequence[tuple[str, str | None]]) -> set[str]:
    return {name for _, name in pieces if name is not None}


def _difference(wanted: set[str], given: set[str]) -> str:
    """What to send instead of the given fields."""
    if PROMPT in given - wanted:
        return f"the task's template has no {{prompt}}: send `fields` with {_listed(wanted)} only"
    if given - wanted:
        return f"`fields` has a name that the task's template lacks; it has {_listed(wanted)}"
    if PROMPT in wanted - given:
        return "the task's template needs a prompt"
    return f"the task's template needs `fields` with {_listed(wanted - {PROMPT})}"


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


def _filled(literal: str, name: str | None, fields: dict[str, str]) -> list[Part]:
    parts = [Part(literal, trusted=True)]
    if name is not None:
        parts.append(Part(fields[name], trusted=False))
    return [part for part in parts if part.text]


class Marks:
    """Unguessable placeholders for the texts of messages while a chat template is rendered."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._contents: list[str] = []

    def mark(self, content: str) -> str:
        """A mark with the text's surrounding white space, which most templates strip."""
        mark = f"{self._nonce}{len(self._contents):06}"
        self._contents.append(content.strip())
        middle = content.strip() or "x"
        start = content.find(middle) if content.strip() else len(content)
        return content[:start] + mark + content[start + len(middle) :]

    def cut(self, skeleton: str) -> list[Part]:
        """Cut a rendered template at its marks, and put the messages' texts in their places."""
        pieces = re.split(f"{self._nonce}([0-9]{{6}})", skeleton)
        parts = [
            Part(self._contents[int(piece)], trusted=False) if i % 2 else Part(piece, trusted=True)
            for i, piece in enumerate(pieces)
        ]
        return [part for part in parts if part.text]
