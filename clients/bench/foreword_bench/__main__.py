"""`foreword bench`: benchmarks of Foreword and its alternatives with the same code."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer
from typer.main import get_command

from foreword_bench.cli.app import make_app
from foreword_bench.errors import BenchError


def main(argv: list[str] | None = None) -> None:
    """Run a command and raise `SystemExit`. An error is one line on standard error."""
    command = get_command(make_app())
    try:
        code = command.main(argv, prog_name="foreword bench", standalone_mode=False)
    except typer.TyperException as exc:
        _fail(_usage(exc), exc.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except BenchError as exc:
        _fail(str(exc), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: typer.TyperException) -> str:
    """Format a mistake in the command line, with the closest match for a misspelt option."""
    closest = getattr(error, "possibilities", None)
    text = f"{error.message}; did you mean {closest[0]}?" if closest else error.format_message()
    return text.removeprefix("Invalid value: ").replace("Value error, ", "")


def _fail(text: str, code: int) -> NoReturn:
    typer.secho(" ".join(f"error: {text}".split()), fg="red", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
