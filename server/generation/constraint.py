"""The form of an answer: JSON of a schema, a match of a regular expression, one of some texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefix_store.definition import Defaults
from prefix_store.sampling import Rank
from server.engine import grammar
from server.engine.grammar import GrammarError
from server.errors import InvalidGrammar, InvalidRequest

_FIELDS = ("response_format", "regex", "choice", "rank")
_OBJECT: dict[str, Any] = {"type": "object"}
_MEMBERS_OF_JSON_SCHEMA = {"name", "description", "strict", "schema"}
"""`strict` changes nothing: every schema is followed exactly."""
_FORMATS = {
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri",
    "uuid",
}  # fmt: skip
"""Values of `format` that the compiler follows. It refuses all others."""
_NAMED_SCHEMAS = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
"""Keywords whose value has schemas by name."""
_VALUES = {"const", "enum"}
"""Keywords whose value is no schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """The form of one answer. At most one field is set; with none, any text is allowed."""

    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] = ()
    """The answer is generated, and is one of these."""
    rank: Rank | None = None
    """Nothing is generated: the answer is the most likely of these texts."""

    def grammar(self) -> str | None:
        """The grammar for the engine; None for any text or a ranking. Raises `InvalidGrammar`."""
        try:
            if self.json_schema is not None:
                return grammar.from_json_schema(_without_unknown_formats(self.json_schema))
            if self.regex is not None:
                return grammar.from_regex(self.regex)
            return grammar.from_texts(self.choice) if self.choice else None
        except GrammarError as exc:
            raise InvalidGrammar(str(exc)) from None
        except ImportError:
            raise InvalidGrammar.not_installed() from None


ANYTHING = Constraint()


def of_fields(given: Mapping[str, Any]) -> Constraint | None:
    """The constraint that a request's fields ask for, or None.

    Raises `InvalidRequest` for two of them, or for the same text twice.
    """
    forms = {name: given[name] for name in _FIELDS if given.get(name) is not None}
    if len(forms) > 1:
        raise InvalidRequest(f"{' and '.join(f'`{name}`' for name in forms)} exclude each other")
    match forms:
        case {"response_format": value}:
            return of_response_format(value)
        case {"regex": value}:
            return Constraint(regex=value)
        case {"choice": value}:
            return Constraint(choice=_distinct("choice", value))
        case {"rank": value}:
            _distinct("rank.texts", value.texts)
            return Constraint(rank=value)
    return None


def of_defaults(defaults: Defaults) -> Constraint:
    """The constraint of a task's answers where a request has none."""
    return of_fields(dict(defaults)) or ANYTHING


def of_response_format(value: Mapping[str, Any]) -> Constraint:
    """Parse OpenAI's `response_format`, or that of llama.cpp and Together, with `schema` beside
    `type`.

    Members that are null are ignored, all others followed or refused. Raises `InvalidRequest`.
    """
    members = {name: part for name, part in value.items() if part is not None}
    kind = members.pop("type", None)
    match kind:
        case "text" if not members:
            return ANYTHING
        case "json_object" if not members:
            return Constraint(json_schema=_OBJECT)
        case "json_object" | "json_schema" if (schema := _schema_of(members)) is not None:
            anything = _OBJECT if kind == "json_object" else {}
            return Constraint(json_schema=schema or anything)
    raise InvalidRequest(
        "`response_format` is {type: text}, {type: json_object} or {type: json_schema}, the latter "
        "two with `schema` or with `json_schema: {name, description, strict, schema}`, and nothing "
        "else beside the type"
    )


def _schema_of(members: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schema, or None where there is none or there is anything else."""
    if members.keys() == {"schema"}:
        schema = members["schema"]
    elif members.keys() == {"json_schema"} and isinstance(members["json_schema"], dict):
        named = members["json_schema"]
        schema = named.get("schema") if named.keys() <= _MEMBERS_OF_JSON_SCHEMA else None
    else:
        return None
    return schema if isinstance(schema, dict) else None


def _without_unknown_formats(schema: Any) -> Any:
    """A copy of a schema in which every `format` is one that the compiler knows. By JSON Schema, an
    unknown one is an annotation, which limits nothing."""
    if isinstance(schema, list):
        return [_without_unknown_formats(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        keyword: _with_known_formats(keyword, value)
        for keyword, value in schema.items()
        if keyword != "format" or not isinstance(value, str) or value in _FORMATS
    }


def _with_known_formats(keyword: str, value: Any) -> Any:
    if keyword in _VALUES:
        return value
    if keyword in _NAMED_SCHEMAS and isinstance(value, dict):
        return {name: _without_unknown_formats(schema) for name, schema in value.items()}
    return _without_unknown_formats(value)


def _distinct(name: str, texts: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) < len(texts):
        raise InvalidRequest(f"`{name}` contains a text twice")
    return tuple(texts)
