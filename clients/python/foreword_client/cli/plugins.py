"""Subcommands of other distributions: the entry points `foreword.commands`.

Each is a callable `main(argv: list[str]) -> None`, which gets all arguments after its name
unparsed, `--help` included. Options before the name, `--url` and `--api-key`, are passed on in
FOREWORD_URL and FOREWORD_API_KEY, by the command's own option, or refused if it calls no server. A
plug-in is imported only when it is called.
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
    "bench": "Benchmark Foreword and its alternatives.",
    "serve": "Start the server: one base model, all tasks.",
    "keys": "Create, list and revoke API keys, on the server's machine.",
    "tune": "Train a prefix on the frozen base model, and push it.",
    "evaluate": "Score a task's answers to the questions of a file.",
    "distill": "Compress a long text into a short prefix.",
    "audit": "Verify and export the audit log, on the server's machine.",
}


_IGNORED = {
    "serve": ("url", "api_key"),
    "keys": ("url", "api_key"),
    "audit": ("url", "api_key"),
    "bench compare": ("api_key",),
    "bench sweep": ("api_key",),
    "bench roofline": ("url", "api_key"),
    "bench static-batch": ("url", "api_key"),
    "bench plot": ("url", "api_key"),
}
"""Options of `foreword` that a command ignores, as it calls no server or needs no key."""

_ADDRESS = {"bench compare": "--foreword-url", "bench sweep": "--foreword-url"}
"""The option for the address of commands that start a server without one. FOREWORD_URL is not meant
for them: a benchmark loads a server only if it was named."""


class PluginError(ForewordError):
    """A subcommand is not installed here, or cannot be loaded."""


class PluginCommand(TyperCommand):
    """A command that passes its arguments on unparsed."""

    def __init__(self, name: str, entry_point: EntryPoint | None) -> None:
        help = _HELP.get(name, f"See `foreword {name} --help`.")
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
        command = _full_name(str(self.name), ctx.args)
        _refuse_ignored_options(command, ctx.parent)
        with _exported(*ctx.obj):
            main(_with_address(command, ctx.args, ctx.parent))


def _full_name(command: str, args: list[str]) -> str:
    """Return the name with that of the subcommand, for commands that have some."""
    return f"{command} {args[0]}" if command == "bench" and args else command


def _with_address(command: str, args: list[str], group: Any) -> list[str]:
    """Pass a typed address on by the command's own option."""
    if command not in _ADDRESS or not _is_typed("url", group):
        return args
    return [args[0], _ADDRESS[command], group.params["url"], *args[1:]]


def _is_typed(option: str, group: Any) -> bool:
    """Whether an option was typed. Variables may be set for other commands."""
    return bool(group.get_parameter_source(option).name == "COMMANDLINE")


def _refuse_ignored_options(command: str, group: Any) -> None:
    """Refuse a typed option that the command ignores."""
    for option in _IGNORED.get(command, ()):
        if _is_typed(option, group):
            flag = f"--{option.replace('_', '-')}"
            raise typer.BadParameter(
                f"`foreword {command}` does not take {flag} before its name; "
                f"`foreword {command} --help` lists what it takes"
            )


@contextmanager
def _exported(url: str | None, api_key: str | None) -> Iterator[None]:
    """Set the environment variables to the options while a command runs."""
    variables = {"FOREWORD_URL": url, "FOREWORD_API_KEY": api_key}
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
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
    """Return all plug-ins by name. `serve` is always listed; it says if it is not installed."""
    found: dict[str, EntryPoint | None] = {"serve": None}
    found |= {point.name: point for point in entry_points(group=GROUP)}
    return {name: PluginCommand(name, point) for name, point in sorted(found.items())}
