"""`foreword bench`: measures Foreword, and what people would use instead, with the same code."""

from __future__ import annotations

import sys

import typer

from foreword_bench.cli.app import make_app
from foreword_bench.errors import BenchError


def main(argv: list[str] | None = None) -> None:
    """Entry point. An error that a user can mend is one line."""
    try:
        make_app()(args=argv, prog_name="foreword bench")
    except BenchError as exc:
        typer.echo(f"error: {exc}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
