"""`foreword serve`. A user's mistake is one line and exit code 2.

What a server needs (torch, transformers, fastapi) is imported once the arguments are read.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import typer

from server.cli.app import HELP_OPTIONS, run
from server.cli.options import with_settings
from server.settings import Settings


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. `argv` excludes the program's name."""
    # Without a handler the first process of a container ignores SIGTERM. Imports take seconds.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    app = typer.Typer(add_completion=False, rich_markup_mode=None)  # long names stay whole
    app.command(context_settings=HELP_OPTIONS)(with_settings(_serve))
    run(app, argv, "serve")


def _serve(settings: Settings) -> None:
    """Start the server: one base model, all tasks.

    Every option is also an environment variable; an option wins over its variable.
    """
    from server.cli.start import start

    start(settings)
