"""The commands put together: each is a subcommand of `foreword`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from foreword_client import ForewordError
from foreword_tuner.errors import TunerError


def run(command: Callable[..., None], name: str, argv: list[str] | None) -> None:
    """An error that a user can mend is one line."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command()(command)
    try:
        app(args=argv, prog_name=f"foreword {name}")
    except (TunerError, ForewordError) as exc:
        typer.echo(f"error: {exc}", err=True)
        sys.exit(1)
