"""`foreword chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from foreword_client.cli import arguments, output
from foreword_client.client import Client
from foreword_client.errors import APIStatusError


def chat(
    ctx: typer.Context,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", metavar="TASK", help="The task. Default: the bare base model."
        ),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message at the start.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum number of tokens in an answer.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, metavar="X", help="0 is greedy.")
    ] = None,
) -> None:
    """Talk to a task, one line at a time. A chat keeps the conversation; a task that answers single
    prompts gets each line on its own.

    /new starts a new conversation, /exit or the end of the input leaves. Ctrl-C stops an answer.
    """
    begin = [] if system is None else [{"role": "system", "content": system}]
    said = list(begin)
    with arguments.connect(ctx) as client:
        remembers = task is None or _takes_conversations(client, task)
        if not remembers:
            if system is not None:
                raise typer.BadParameter(f"--system: {task} answers single prompts")
            output.note(f"{task} answers single prompts: it does not remember earlier lines")
        for line in _lines():
            if line == "/exit":
                return
            if line == "/new":
                said = list(begin)
                output.note("a new conversation")
                continue
            asked = [*said, {"role": "user", "content": line}]
            try:
                text = _answer(client, task, asked, max_tokens, temperature)
            except APIStatusError as exc:
                if not sys.stdin.isatty() or exc.status >= 500:
                    raise
                output.error(f"{exc} [{exc.code}]")
                continue
            if remembers:
                said = [*asked, {"role": "assistant", "content": text}]


def _takes_conversations(client: Client, task: str) -> bool:
    """Whether a task takes any conversation, as the server decides it: a chat, by its profile or
    its prefix's messages, that has no template."""
    found = client.task(task)
    if found.profile.template is not None or found.profile.chat:
        return found.profile.template is None
    if found.active_version is None:
        return False
    return client.version(task, found.active_version).prompt.messages is not None


def _lines() -> Iterator[str]:
    """Yield lines from the terminal or a pipe. Empty lines are skipped."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives `input` a history and the arrow keys
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            output.write("\n")
            return
        if line.strip():
            yield line.strip()


def _answer(
    client: Client,
    task: str | None,
    messages: list[dict[str, str]],
    max_tokens: int | None,
    temperature: float | None,
) -> str:
    """Print the answer as it arrives. Returns its text."""
    texts: list[str] = []
    with client.stream(
        task=task, messages=messages, max_tokens=max_tokens, temperature=temperature
    ) as stream:
        try:
            for token in stream:
                texts.append(token.text)
                output.write(token.text)
        except KeyboardInterrupt:
            output.note(" (stopped)")
        finally:
            output.write("\n")
    return "".join(texts)
