"""`foreword doctor`: what would keep a server from starting or from serving well, and what to do.

It changes nothing: what it makes, it takes away again, but for the compiled layers, which a start
would make too. The exit code is 0 where a server would start, 1 where it would not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.finding import Finding, Status

_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(argv: Sequence[str]) -> None:
    """`foreword doctor [--url URL] [--json] [the options of serve]`"""
    parser = argparse.ArgumentParser(
        "foreword doctor",
        description="Check whether a server would start here, and serve well.",
        epilog="All options of `foreword serve` are taken, and its variables: give the same.",
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("FOREWORD_URL"),
        help="Also ask the server there whether it is well. Default: FOREWORD_URL, if it is set.",
    )
    parser.add_argument("--json", action="store_true", help="Write JSON, for programs.")
    args, rest = parser.parse_known_args(argv)
    findings = list(_examine(rest, args.url))
    if args.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        _show(findings)
    raise SystemExit(1 if any(finding.status == "fail" for finding in findings) else 0)


def _examine(options: list[str], url: str | None) -> Iterator[Finding]:
    """Nothing of the server is imported before it is known that it can be."""
    try:
        from server.cli import checks
    except ImportError as exc:
        yield Finding(
            "packages", "fail", str(exc), "install the server: pip install . ./clients/python"
        )
        return
    yield from checks.packages()
    settings = checks.settings(options)
    if isinstance(settings, Finding):
        yield settings
        return
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
