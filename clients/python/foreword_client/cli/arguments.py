"""Options shared by several commands, and parsers of their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword_client.client import Client
from foreword_client.types import PushFields

Task = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="The version's number.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
IfMatch = Annotated[
    int | None,
    typer.Option(
        metavar="REVISION",
        help="Only if the task is still at this revision, which `foreword task` shows. "
        "Default: the one at the start of the command.",
        show_default=False,
    ),
]

DEFINITION = "How it is asked"
"""Help panel of the options that make a new version."""
Description = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What the task is for.", rich_help_panel="Profile"),
]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Text around every prompt, such as 'Review: {prompt}'. An empty one: none.",
        rich_help_panel=DEFINITION,
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        help="Send a prompt as a user message of the base model's chat template.",
        show_default=False,
        rich_help_panel=DEFINITION,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Stop before this text. Repeatable. An empty one: nowhere.",
        rich_help_panel=DEFINITION,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Maximum number of tokens, unless a request says.",
        rich_help_panel=DEFINITION,
    ),
]

Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field", metavar="NAME=VALUE", help="For a field of the task's template. Repeatable."
    ),
]


def connect(ctx: typer.Context) -> Client:
    """Connect to the server given by the options before the command."""
    url, api_key = ctx.obj
    return Client(url, api_key=api_key)


def changes(
    description: str | None,
    template: str | None,
    chat: bool | None,
    stop: list[str] | None,
    max_tokens: int | None,
) -> PushFields:
    """Collect the fields that were given. An empty template or stop string clears it."""
    fields: PushFields = {}
    if description is not None:
        fields["description"] = description
    if template is not None:
        fields["template"] = template or None
    if chat is not None:
        fields["chat"] = chat
    defaults: dict[str, Any] = {}
    if stop:
        defaults["stop"] = [text for text in stop if text] or None
    if max_tokens is not None:
        defaults["max_tokens"] = max_tokens
    if defaults:
        fields["defaults"] = defaults
    return fields


def template_fields(given: list[str] | None) -> dict[str, str] | None:
    """Parse values for the fields of a template."""
    pairs = [pair.partition("=") for pair in given or []]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise typer.BadParameter("write a field as NAME=VALUE", param_hint="--field")
    return {name: value for name, _, value in pairs} or None


def messages(path: Path) -> list[dict[str, str]]:
    """Read chat messages from a JSON file, a list of `{"role": ..., "content": ...}`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise typer.BadParameter(f"{path} is not JSON") from None
    if not isinstance(found, list) or not all(_is_message(message) for message in found):
        raise typer.BadParameter(f'{path} is not a list of {{"role": ..., "content": ...}}')
    return found


def json_schema(path: Path) -> dict[str, Any]:
    """Read a JSON schema from a file, as a request's `response_format`."""
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise typer.BadParameter(f"{path} is not JSON") from None
    if not isinstance(schema, dict):
        raise typer.BadParameter(f"{path} is not a JSON schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise typer.BadParameter(f"{path} is not JSON") from None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{path} is not a JSON object")
    return found


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON objects from a file, one per line."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise typer.BadParameter(f"{path}, line {number}, is not JSON") from None
        if not isinstance(value, dict):
            raise typer.BadParameter(f"{path}, line {number}, is not a JSON object")
        found.append(value)
    return found


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), str) for key in ("role", "content")
    )
