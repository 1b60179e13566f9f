"""Output of the commands: tables and text for people, JSON for programs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import typer
from pydantic import BaseModel
from pydantic_core import to_json
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from foreword_client.types import Check

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WIDE = 10_000


def show_json(value: BaseModel | Sequence[BaseModel]) -> None:
    """Print one JSON document."""
    typer.echo(to_json(value, indent=2).decode())


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns. A narrow terminal cuts the last one; a pipe gets all of it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_last = column == columns[-1]
        table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if is_last else None)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _stdout().print(table)


def show_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields:
        table.add_row(name, _cell(value))
    _stdout().print(table)


def show_checks(checks: Sequence[Check]) -> None:
    """Print the checks of a verification, one per line."""
    rows = [("ok" if check.passed else "FAILED", check.name, check.detail) for check in checks]
    show_table(("", "CHECK", "DETAIL"), rows)


def write(text: str) -> None:
    """Print text of a completion unbuffered. On a terminal, without control characters."""
    typer.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def say(text: str) -> None:
    """Print what was done."""
    _stdout().print(_cell(text), soft_wrap=True)


def note(text: str) -> None:
    """Print a remark on standard error."""
    _stderr().print(_cell(text), style="dim", soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    _stderr().print(_cell(f"warning: {text}"), style="yellow", soft_wrap=True)


def error(text: str) -> None:
    """Print an error on standard error, in one red line."""
    line = " ".join(f"error: {text}".split())
    _stderr().print(_cell(line), style="red", soft_wrap=True)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on standard error. Yields its update function, which takes bytes done and
    the total; None if standard error is not a terminal."""
    console = _stderr()
    if not console.is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, transient=True
    ) as bar:
        line = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def printable(text: str) -> str:
    """Replace control characters, which could move the cursor or recolour the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def size(num_bytes: int) -> str:
    """Format a size for people: 512 B, 1.5 MB."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def short(digest: str) -> str:
    """Shorten a digest to 12 hex digits."""
    return digest.removeprefix("sha256:")[:12]


def when(at: datetime) -> str:
    """Format a time in the local time zone, to the minute."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M")


def _cell(text: str) -> Text:
    """Return the text without interpreting markup in it."""
    return Text(printable(text))


def _stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)
