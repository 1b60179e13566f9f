"""Options shared by several commands, and parsers of their values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

CORES = os.cpu_count() or 1

Concurrency = Annotated[int, typer.Option(min=1, help="Concurrent requests (closed loop).")]
Requests = Annotated[int, typer.Option(min=1, help="Number of requests.")]
PromptTokens = Annotated[
    str,
    typer.Option(
        metavar="N[,N...]", help="Tokens of a prompt. With several lengths each request draws one."
    ),
]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens of each completion.")]
Tasks = Annotated[
    int,
    typer.Option(
        min=0,
        help="Number of tasks that requests rotate over, each with a random prefix: uploaded to a "
        "Foreword server, sent as text before each prompt to any other.",
    ),
]
PrefixTokens = Annotated[int, typer.Option(min=1, help="Tokens of each task's prefix.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="FOREWORD_API_KEY", help="Sent as a bearer token.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the result there, as JSON."),
]
Seed = Annotated[int, typer.Option(help="Seed of prompts and arrivals.")]
Roofline = Annotated[
    bool,
    typer.Option(help="Measure the machine's limits first, and compare with them."),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads to use.")]

_SERVERS = "Servers"

ModelFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="The model's folder, for all servers. Default: the server's default model.",
        rich_help_panel=_SERVERS,
    ),
]
Vllm = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="vLLM's virtual environment; it is started from there.",
        rich_help_panel=_SERVERS,
    ),
]
ForewordUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="A running Foreword server.", rich_help_panel=_SERVERS),
]
PeerUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A running OpenAI-compatible server to use instead of vLLM.",
        rich_help_panel=_SERVERS,
    ),
]
ServeFlags = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Options for `foreword serve`.", rich_help_panel=_SERVERS),
]
VllmFlags = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Options for `vllm serve`.", rich_help_panel=_SERVERS),
]
VllmEnv = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Variable for `vllm serve`, such as VLLM_CPU_NUM_OF_RESERVED_CPU=0. Repeatable.",
        rich_help_panel=_SERVERS,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for logs and prefix stores. Default: a temporary one.",
        rich_help_panel=_SERVERS,
    ),
]


def environment(given: list[str] | None) -> dict[str, str]:
    """Parse `--vllm-env`. Raises `typer.BadParameter`."""
    pairs = [pair.partition("=") for pair in given or []]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise typer.BadParameter("--vllm-env: write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def lengths(text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of numbers >= 1. Raises `typer.BadParameter`."""
    try:
        found = tuple(int(length) for length in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 32 or 16,64,256")
    return found
