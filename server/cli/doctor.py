"""`foreword doctor`: what would keep a server from starting or from serving well, and what to do.

It leaves nothing changed except the compiled layers, which a start would build too. The exit code
is 0 if a server would start, 1 if it would not.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.app import HELP_OPTIONS, StartError, run
from server.cli.finding import Finding, Status

if TYPE_CHECKING:
    from server.settings import Settings

_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(argv: Sequence[str]) -> None:
    """`foreword doctor [--url URL] [--json] [options of serve]`"""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    rest = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(context_settings=HELP_OPTIONS | rest)(_doctor)
    run(app, argv, "doctor")


def _doctor(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="FOREWORD_URL", metavar="URL", help="Also check the server that runs there."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check whether a server would start here and serve well. Exits with 1 if it would not.

    All options and variables of `foreword serve` are accepted: pass the ones you start it with.
    """
    findings = list(_examine(ctx.args, url))
    if as_json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _show(findings)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def check_settings(options: list[str]) -> Settings | Finding:
    """Read the settings as `foreword serve` would."""
    from server.cli.options import read_settings

    try:
        return read_settings(options)
    except StartError as exc:
        return Finding("settings", "fail", str(exc), "see `foreword serve --help`")


def _examine(options: list[str], url: str | None) -> Iterator[Finding]:
    """Run the checks. A package that cannot be imported is a finding, so imports are made here."""
    try:
        settings = check_settings(options)
        if isinstance(settings, Finding):
            yield settings
            return
        from server.cli import checks
    except ImportError as exc:
        todo = "install the server: pip install . ./clients/python"
        yield Finding("packages", "fail", str(exc), todo)
        return
    yield from checks.packages()
    each: list[Callable[[], Finding]] = [
        lambda: checks.device(settings),
        lambda: checks.compiler(settings),
        lambda: checks.model(settings),
        lambda: checks.memory(settings),
        lambda: checks.store(settings),
        lambda: checks.registry(settings),
        lambda: checks.keys(settings),
        lambda: checks.port(settings),
    ]
    if url is not None:
        each.append(lambda: checks.server(url))
    for check in each:
        yield check()


def _show(findings: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        detail = finding.detail + (f"\n→ {finding.todo}" if finding.todo else "")
        status = Text(finding.status, style=_STYLES[finding.status])
        table.add_row(status, finding.check, Text(detail))
    width = None if sys.stdout.isatty() else max(80, shutil.get_terminal_size().columns)
    Console(width=width, highlight=False).print(table)
