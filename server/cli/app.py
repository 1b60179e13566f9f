"""How the server's commands end: one line for an error, and one set of exit codes.

0: done. 1: a check failed. 2: a mistake of the user, or a server that cannot start. 130: Ctrl-C.
143: SIGTERM before a server was ready.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.main import get_command

from prefix_store.errors import PrefixStoreError

HELP_OPTIONS = {"help_option_names": ["--help", "-h"]}


class StartError(typer.TyperException):
    """The server cannot start as configured. The message is one line for the user."""

    exit_code = 2


def run(app: typer.Typer, argv: Sequence[str] | None, name: str) -> None:
    """Run a command line as `foreword NAME`. Return on success, else raise `SystemExit`.

    `argv` excludes the program's name; None reads `sys.argv`.
    """
    command = get_command(app)
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        code = command.main(args=args, prog_name=f"foreword {name}", standalone_mode=False)
    except typer.TyperException as exc:
        _fail(message(exc), exc.exit_code)
    except PrefixStoreError as exc:
        _fail(str(exc), 2)
    except typer.Abort:
        raise SystemExit(130) from None
    if code:
        raise SystemExit(code)


def message(error: typer.TyperException) -> str:
    """Format an error, with the closest match for a misspelt option."""
    closest = getattr(error, "possibilities", None)
    text = f"{error.message}; did you mean {closest[0]}?" if closest else error.format_message()
    return text.removeprefix("Invalid value: ").replace("Value error, ", "")


def _fail(text: str, code: int) -> NoReturn:
    typer.secho(" ".join(f"error: {text}".split()), fg="red", err=True)
    raise SystemExit(code)
