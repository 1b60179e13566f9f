"""The whole command line: our commands and those of plug-ins."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from foreword_client._version import __version__
from foreword_client.cli import (
    apply,
    chat,
    errors,
    generate,
    plugins,
    push,
    residency,
    tasks,
    traffic,
    versions,
)

_TASKS = "Tasks and versions"
_HELP = """One frozen model, a foreword for every task.

A task is a name and a prefix that precedes every prompt. Push one and use it:

[bold]foreword push french --text "Translate to French."[/bold]

[bold]foreword generate --task french "Good morning"[/bold]
"""


class Commands(TyperGroup):
    """Our commands and those of plug-ins. Every error is one line, never a traceback."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands.update(plugins.commands())

    def main(self, *args: Any, **options: Any) -> Any:
        with errors.reported():
            code = super().main(*args, **options | {"standalone_mode": False})
        sys.exit(code if isinstance(code, int) else 0)


def _options(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="FOREWORD_URL",
            metavar="URL",
            help="Address of the server. Default: http://127.0.0.1:8000",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="FOREWORD_API_KEY",
            metavar="KEY",
            help="API key. Prefer the variable: other users of this machine can see arguments.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the client's version.")] = (
        False
    ),
) -> None:
    ctx.obj = url, api_key
    if version:
        typer.echo(f"foreword-client {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def make_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(cls=Commands, rich_markup_mode="rich", add_completion=True)
    app.callback(
        invoke_without_command=True,
        help=_HELP,
        context_settings={"help_option_names": ["--help", "-h"]},
    )(_options)
    app.command()(generate.generate)
    app.command()(chat.chat)
    for command in (
        push.push,
        tasks.tasks,
        tasks.task,
        versions.versions,
        versions.verify,
        versions.activate,
        tasks.rollback,
        traffic.traffic,
        versions.download,
        tasks.delete,
        residency.warm,
        residency.pin,
        residency.unpin,
        residency.evict,
        apply.apply,
        apply.export,
    ):
        app.command(rich_help_panel=_TASKS)(command)
    app.command(rich_help_panel=plugins.PANEL)(tasks.info)
    return app


def main() -> None:
    """Entry point of the `foreword` command."""
    make_app()()
