"""How a version is asked, in a table cell, in full, and compared with another version."""

from __future__ import annotations

from typing import Any

from foreword_client import types

_MAX_CELL = 40


def short(definition: types.Definition | None) -> str:
    """The template in one table cell."""
    if definition is None:
        return "-"
    if definition.template is None:
        return "chat" if definition.chat else "-"
    text = repr(definition.template)[1:-1]
    text = text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"
    return f"chat: {text}" if definition.chat else text


def fields(definition: types.Definition | types.Profile) -> list[tuple[str, str]]:
    """Template, chat and defaults, with their names."""
    template = definition.template
    return [
        ("template", "-" if template is None else repr(template)),
        ("chat", "yes" if definition.chat else "no"),
        ("defaults", settings(definition.defaults)),
    ]


def settings(given: types.Answer) -> str:
    """Names and values of the settings that are not None."""
    values = given.model_dump(exclude_none=True)
    return ", ".join(f"{name} {value!r}" for name, value in values.items()) or "-"


def changes(version: types.Manifest, before: types.Manifest | None) -> str:
    """What differs from the version before."""
    if before is None:
        return "-"
    now, then = _parts(version), _parts(before)
    return ", ".join(name for name in now if now[name] != then[name]) or "nothing"


def _parts(version: types.Manifest) -> dict[str, Any]:
    definition = version.definition or types.Definition()
    return {
        "prefix": version.digest,
        "template": definition.template,
        "chat": definition.chat,
        "defaults": definition.defaults,
        "prompt": version.prompt,
        "golden": version.golden,
        "evaluation": version.evaluation,
    }
