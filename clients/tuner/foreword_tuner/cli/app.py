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
    with reported():
        code = get_command(app).main(argv, prog_name=f"foreword {name}", standalone_mode=False)
    sys.exit(code if isinstance(code, int) else 0)
