"""Subcommands of other distributions: the entry points `foreword.commands`.

Each names a callable `main(argv: list[str]) -> None`, which gets all arguments behind its name as
they were typed, `--help` included. What `foreword` itself was given before the name, `--url` and
`--api-key`, is in FOREWORD_URL and FOREWORD_API_KEY, typed or not, or refused where the command
would not look there. Nothing of it is imported until it is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand

from foreword_client.errors import ForewordError

GROUP = "foreword.commands"
PANEL = "Server"

_HELP = {
    "doctor": "Check whether a server would start here, and what to do if not.",
    "bench": "Measure Foreword, and what people would use instead.",
    "serve": "Start the server: one base model, all tasks.",
    "keys": "Make, list and revoke keys, on the server's machine.",
    "tune": "Train a prefix on the frozen base model, and push it.",
    "evaluate": "Score a task's answers to the questions of a file.",
    "distill": "Compress a long text into a short prefix.",
    "audit": "Verify and export who changed what, on the server's machine.",
}


_NOT_ASKED = {
    "serve": ("url", "api_key"),
    "keys": ("url", "api_key"),
    "audit": ("url", "api_key"),
    "tune": ("url",),
    "distill": ("url",),
    "bench": ("url",),
}
"""Options of `foreword` that say nothing to a command: it asks no server, or takes its address by
an option of its own."""


class PluginError(ForewordError):
    """A subcommand is not installed here, or cannot be loaded."""


class PluginCommand(TyperCommand):
    """Hands its arguments over unread."""

    def __init__(self, name: str, entry_point: EntryPoint | None) -> None:
        help = _HELP.get(name, f"Run `foreword {name} --help` for what it does.")
        super().__init__(name, help=help, add_help_option=False, rich_help_panel=PANEL)
        self._entry_point = entry_point

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = list(args)
        ctx.args = rest
        return rest

    def invoke(self, ctx: Any) -> None:
        if self._entry_point is None:
            raise PluginError(
                "the server is not installed here: this is only the client. In a checkout of "
                "Foreword, `pip install . ./clients/python` installs it"
            )
        try:
            main = self._entry_point.load()
        except ImportError as exc:
            raise PluginError(f"`foreword {self.name}` cannot be loaded: {exc}") from exc
        _refuse_what_is_not_asked(str(self.name), ctx.parent)
        with _told(*ctx.obj):
            main(ctx.args)


def _refuse_what_is_not_asked(command: str, group: Any) -> None:
    """A variable may be set for other commands; what is typed is meant for this one."""
    for option in _NOT_ASKED.get(command, ()):
        if group.get_parameter_source(option).name == "COMMANDLINE":
            flag = f"--{option.replace('_', '-')}"
            raise typer.BadParameter(
                f"`foreword {command}` does not take {flag} before its name; "
                f"`foreword {command} --help` lists what it takes"
            )


@contextmanager
def _told(url: str | None, api_key: str | None) -> Iterator[None]:
    """What the options say is in the variables while a command runs."""
    said = {"FOREWORD_URL": url, "FOREWORD_API_KEY": api_key}
    before = {name: os.environ.get(name) for name in said}
    _set(said)
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def commands() -> dict[str, PluginCommand]:
    """All of them by name. `serve` is always there, and says so when it is not."""
    found: dict[str, EntryPoint | None] = {"serve": None}
    found |= {point.name: point for point in entry_points(group=GROUP)}
    return {name: PluginCommand(name, point) for name, point in sorted(found.items())}
