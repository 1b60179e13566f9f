"""How a command of the tuner runs as a subcommand of `foreword`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer
from typer.main import get_command

from foreword_client.cli.errors import reported

_HELP_OPTIONS = {"help_option_names": ["--help", "-h"]}


def run(command: Callable[..., None], name: str, argv: list[str] | None) -> None:
    """Run a command and raise `SystemExit`. An error is one line on standard error."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(context_settings=_HELP_OPTIONS)(command)
    given = sys.argv[1:] if argv is None else argv
    with reported():
        code = get_command(app).main(
            _with_values(given), prog_name=f"foreword {name}", standalone_mode=False
        )
    sys.exit(code if isinstance(code, int) else 0)


def _with_values(argv: list[str]) -> list[str]:
    """Give a `--push` that has no value an empty one: Typer has no options with optional values."""
    is_bare = [
        one == "--push" and (not rest or rest[0].startswith("-"))
        for one, rest in ((one, argv[i + 1 : i + 2]) for i, one in enumerate(argv))
    ]
    return [f"{one}=" if bare else one for one, bare in zip(argv, is_bare, strict=True)]
