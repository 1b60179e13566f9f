"""`foreword apply` and `export`: tasks as code"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from foreword_client.async_client import AsyncClient
from foreword_client.cli import arguments, output

if TYPE_CHECKING:
    from foreword_client.apply.execute import Result
    from foreword_client.apply.run import Applied

T = TypeVar("T")

MAX_RETRIES = 5
_NAMES = 5
_VALUE_CHARS = 60
_SIGNS = {"create": "+", "change": "~", "delete": "-"}
_PAST = {"create": "created", "change": "changed", "delete": "deleted"}
CHANGES = 2
"""Exit code with --detailed-exitcode if there are changes, as of `terraform plan`."""

Files = Annotated[
    list[str],
    typer.Option(
        "--filename",
        "-f",
        metavar="FILE",
        help="A YAML file, a folder of them, or - for standard input. Can be repeated.",
    ),
]
Concurrency = Annotated[
    int, typer.Option(min=1, max=32, metavar="N", help="Number of tasks worked on at a time.")
]


def apply(
    ctx: typer.Context,
    files: Files,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; change nothing.")
    ] = False,
    detailed_exitcode: Annotated[
        bool,
        typer.Option(
            "--detailed-exitcode", help="With --dry-run: exit with 2 if there are changes."
        ),
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete tasks that no file names.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")] = False,
    concurrency: Concurrency = 4,
    as_json: arguments.AsJson = False,
) -> None:
    """Make the tasks of the server as files declare them.

    Files are checked, and prefixes read, before anything is changed. What is as declared already is
    left alone.
    """
    from foreword_client.apply import files as task_files
    from foreword_client.apply import run

    if detailed_exitcode and not dry_run:
        raise typer.BadParameter("--detailed-exitcode goes with --dry-run")
    if prune and not (yes or dry_run or sys.stdin.isatty()):
        raise typer.BadParameter("not a terminal; pass --yes", param_hint="--yes")
    declared = task_files.read(files)
    options = run.Options(prune=prune, dry_run=dry_run, concurrency=concurrency)
    with _counter("reading tasks") as progress:
        applied = anyio.run(
            partial(
                _with_client,
                ctx,
                run.apply,
                declared,
                options,
                report=_report,
                progress=progress,
                confirm=partial(_confirm, yes=yes),
            )
        )
    if as_json:
        output.show_json(applied)
    else:
        _show(applied)
    if applied.failed:
        raise typer.Exit(1)
    if detailed_exitcode and applied.tasks:
        raise typer.Exit(CHANGES)


def export(
    ctx: typer.Context,
    tasks: Annotated[
        list[str] | None, typer.Argument(metavar="[TASK]...", help="Default: all tasks.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            file_okay=False,
            help="Write tasks.yaml and the prefixes into this folder.",
        ),
    ] = None,
    concurrency: Concurrency = 4,
    as_json: arguments.AsJson = False,
) -> None:
    """Describe tasks in YAML that `apply` reads.

    Without --output, prefixes are named by digest, and the file fits this server only.
    """
    from foreword_client.apply import export as exports

    if tasks and folder is not None and (folder / "tasks.yaml").exists():
        raise typer.BadParameter(
            f"{folder / 'tasks.yaml'} exists and may describe other tasks: choose another folder"
        )
    document = anyio.run(
        partial(_with_client, ctx, exports.export, tasks or [], folder, concurrency=concurrency)
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tasks.yaml"
        path.write_text(exports.to_yaml(document), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    elif folder is None:
        typer.echo(exports.to_yaml(document), nl=False)
    else:
        output.say(f"wrote {path} (tasks: {len(document['tasks'])})")


async def _with_client(
    ctx: typer.Context, work: Callable[..., Awaitable[T]], *args: Any, **options: Any
) -> T:
    url, api_key = ctx.obj
    async with AsyncClient(url, api_key=api_key, max_retries=MAX_RETRIES) as client:
        return await work(client, *args, **options)


def _report(result: Result, num_done: int, total: int) -> None:
    """Print one line when a task is done."""
    line = f"[{num_done}/{total}] {result.task}: {result.error or _PAST[result.action]}"
    code = f" [{result.code}]" if result.code else ""
    if result.error is None:
        output.note(line)
    else:
        output.error(f"{line}{code}")
    for warning in result.warnings:
        output.warn(f"{result.task}: {warning}")


def _confirm(tasks: Sequence[str], *, yes: bool) -> None:
    if yes:
        return
    names = ", ".join(tasks[:_NAMES]) + (", ..." if len(tasks) > _NAMES else "")
    if not typer.confirm(f"Delete {len(tasks)} tasks that no file names ({names})?", err=True):
        output.note("nothing was changed")
        raise typer.Exit(1)


def _show(applied: Applied) -> None:
    if applied.dry_run:
        for result in applied.tasks:
            output.say(f"{_SIGNS[result.action]} {result.task}")
            for change in result.changes:
                output.say(f"    {_line(**change)}")
    output.say(applied.summary)


def _line(path: str, before: Any, after: Any) -> str:
    if before is None:
        return f"+ {path}: {_value(after)}"
    if after is None:
        return f"- {path}: {_value(before)}"
    return f"~ {path}: {_value(before)} -> {_value(after)}"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}..."


@contextmanager
def _counter(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how many tasks have been read. Yields its update function."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        line = bar.add_task(what, total=None)

        def update(num_done: int, total: int) -> None:
            bar.update(line, completed=num_done, total=total)
            if num_done == total:
                bar.stop()  # lines of results follow

        yield update
