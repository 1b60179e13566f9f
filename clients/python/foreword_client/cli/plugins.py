"""Subcommands of other distributions: the entry points `foreword.commands`.

Each names a callable `main(argv: list[str]) -> None`, which gets all arguments behind its name as
they were typed, `--help` included. Nothing of it is imported until it is called.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

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
        main(ctx.args)


def commands() -> dict[str, PluginCommand]:
    """All of them by name. `serve` is always there, and says so when it is not."""
    found: dict[str, EntryPoint | None] = {"serve": None}
    found |= {point.name: point for point in entry_points(group=GROUP)}
    return {name: PluginCommand(name, point) for name, point in sorted(found.items())}
