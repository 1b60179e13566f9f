"""`foreword chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import typer

from foreword_client.cli import arguments, output
from foreword_client.client import Client
from foreword_client.errors import APIStatusError, PermissionDeniedError
from foreword_client.types import GenerateOptions


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
    field: arguments.Fields = None,
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
    options: GenerateOptions = {
        "fields": arguments.template_fields(field),
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    begin = [] if system is None else [{"role": "system", "content": system}]
    with arguments.connect(ctx) as client:
        talk = _Talk(client, task, options, begin)
        if task is not None and not _takes_conversations(client, task):
            if system is not None:
                raise typer.BadParameter(f"--system: {task} answers single prompts")
            talk.forget()
        for line in _lines():
            if line == "/exit":
                return
            if line == "/new":
                talk.said.clear()
                output.note("a new conversation")
                continue
            try:
                talk.say(line)
            except APIStatusError as exc:
                if not sys.stdin.isatty() or exc.status >= 500:
                    raise
                output.error(f"{exc} [{exc.code}]")


@dataclass(slots=True)
class _Talk:
    """A conversation with a task, or single prompts to one that takes no conversations."""

    client: Client
    task: str | None
    options: GenerateOptions
    begin: list[dict[str, str]]
    """What comes before the first line."""
    said: list[dict[str, str]] = field(default_factory=list)
    remembers: bool = True

    def say(self, line: str) -> None:
        """Print the answer to a line. Raises `APIStatusError`."""
        message = {"role": "user", "content": line}
        try:
            text = self._answer([*self.begin, *self.said, message])
        except APIStatusError as exc:
            if exc.code != "not_a_chat" or self.begin or not self.said:
                raise
            self.forget()  # a key for `generate` alone cannot look, or the task was changed
            text = self._answer([message])
        if self.remembers:
            self.said += [message, {"role": "assistant", "content": text}]

    def forget(self) -> None:
        """Send each line on its own from now on."""
        self.remembers = False
        self.said.clear()
        output.note(f"{self.task} answers single prompts: it does not remember earlier lines")

    def _answer(self, messages: list[dict[str, str]]) -> str:
        """Print the answer as it arrives. Returns its text."""
        texts: list[str] = []
        options: GenerateOptions = {**self.options, "messages": messages}
        with self.client.stream(task=self.task, **options) as stream:
            try:
                for token in stream:
                    texts.append(token.text)
                    output.write(token.text)
            except KeyboardInterrupt:
                output.note(" (stopped)")
            finally:
                output.write("\n")
        return "".join(texts)


def _takes_conversations(client: Client, task: str) -> bool:
    """Whether a task takes any conversation, as the server decides it: a chat, by its profile or
    its prefix's messages, that has no template. True where the key may not look."""
    try:
        found = client.task(task)
        if found.profile.template is not None or found.profile.chat:
            return found.profile.template is None
        if found.active_version is None:
            return False
        return client.version(task, found.active_version).prompt.messages is not None
    except PermissionDeniedError:
        return True


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
