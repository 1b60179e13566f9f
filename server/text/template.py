"""Prompts put together from trusted templates and a user's words, and kept apart."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from string import Formatter

from server.errors import TemplateMismatch


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a prompt. Only where it is trusted do special tokens count as such."""

    text: str
    trusted: bool


def parse(template: str) -> list[tuple[str, str | None]]:
    """`(text, field or none)` pairs. Raises `TemplateMismatch`: fields are plain names."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError:
        raise TemplateMismatch("a brace without its partner; write {{ or }} for a brace") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise TemplateMismatch("a template's fields are plain names such as {prompt}")
    return [(literal, name) for literal, name, _, _ in pieces]


def render(template: str, fields: dict[str, str]) -> list[Part]:
    """A task's template with its fields filled in. Raises `TemplateMismatch`."""
    pieces = parse(template)
    wanted = {name for _, name in pieces if name is not None}
    if missing := sorted(wanted - fields.keys()):
        raise TemplateMismatch(f"the task's template needs the fields: {', '.join(missing)}")
    if fields.keys() - wanted:
        known = ", ".join(sorted(wanted)) or "none"
        raise TemplateMismatch(f"a field that the task's template lacks; it has: {known}")
    return [part for literal, name in pieces for part in _filled(literal, name, fields)]


def _filled(literal: str, name: str | None, fields: dict[str, str]) -> list[Part]:
    parts = [Part(literal, trusted=True)]
    if name is not None:
        parts.append(Part(fields[name], trusted=False))
    return [part for part in parts if part.text]


class Marks:
    """Stand for messages' texts while a template is rendered; nobody can guess them."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._contents: list[str] = []

    def mark(self, content: str) -> str:
        """Has the text's white space at both ends, because most templates strip that."""
        mark = f"{self._nonce}{len(self._contents):06}"
        self._contents.append(content.strip())
        middle = content.strip() or "x"
        start = content.find(middle) if content.strip() else len(content)
        return content[:start] + mark + content[start + len(middle) :]

    def cut(self, skeleton: str) -> list[Part]:
        """The rendered template, cut at the marks, with the messages' texts in their places."""
        pieces = re.split(f"{self._nonce}([0-9]{{6}})", skeleton)
        parts = [
            Part(self._contents[int(piece)], trusted=False) if i % 2 else Part(piece, trusted=True)
            for i, piece in enumerate(pieces)
        ]
        return [part for part in parts if part.text]
