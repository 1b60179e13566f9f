"""`foreword generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword_client.cli import arguments, output
from foreword_client.client import Client
from foreword_client.types import GenerateOptions, Generation

_SAMPLING = "Sampling (default: the task's)"
_FORM = "Form of the answer (default: the task's)"


def generate(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="The prompt. Left out, or -: standard input."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", metavar="TASK", help="The task. Default: the bare base model."
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="A version of the task. Default: the active one."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="A JSON file with chat messages, in place of a prompt.",
        ),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For a field of the task's template. Repeatable."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Maximum number of tokens.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="0 is greedy.", rich_help_panel=_SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="X", help="Nucleus.", rich_help_panel=_SAMPLING),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="0 is all tokens.", rich_help_panel=_SAMPLING),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Drop tokens below this share of the top probability.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Same seed, same tokens.", rich_help_panel=_SAMPLING),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Stop before this text. Repeatable.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    stop_token_id: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            metavar="ID",
            help="Stop at this token. Repeatable.",
            rich_help_panel=_SAMPLING,
        ),
    ] = None,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos",
            help="Continue to --max-tokens past the model's end.",
            rich_help_panel=_SAMPLING,
        ),
    ] = False,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Answer with JSON of this schema.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="Answer with a full match of this regular expression.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Generate one of these texts. Repeatable.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    rank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Score these texts and answer with the most likely (-v: all scores). Repeatable.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    rank_by: Annotated[
        str | None,
        typer.Option(
            metavar="sum|mean",
            help="Rank by the sum (default) or the mean of the tokens' log-probabilities.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(metavar="N", help="Lower runs earlier within the task. Default: 0."),
    ] = None,
    traffic_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Same key, same version, where versions share the traffic."
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Write tokens as they come. Default: on a terminal.",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print version, tokens and times afterwards.")
    ] = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Complete a prompt after a task's prefix.

    With --json the answer is one document; with --json --stream, one event a line.
    """
    options: GenerateOptions = {
        "messages": None if messages is None else arguments.messages(messages),
        "fields": _fields(field),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "seed": seed,
        "stop": stop or None,
        "stop_token_ids": stop_token_id or None,
        "ignore_eos": ignore_eos or None,
        "response_format": None if json_schema is None else arguments.json_schema(json_schema),
        "regex": regex,
        "choice": choice or None,
        "rank": _rank(rank, rank_by),
        "priority": priority,
        "traffic_key": traffic_key,
    }
    if prompt == "-" or (prompt is None and messages is None and not field):
        prompt = _from_stdin()
    streams = stream if stream is not None else sys.stdout.isatty() and not as_json
    with arguments.connect(ctx) as client:
        if streams:
            _stream(client, prompt, task, version, options, as_json=as_json, verbose=verbose)
            return
        answer = client.generate(prompt, task=task, version=version, **options)
        if as_json:
            output.show_json(answer)
            return
        output.write(answer.text + "\n")
        if verbose:
            _note(answer)


def _stream(
    client: Client,
    prompt: str | None,
    task: str | None,
    version: int | None,
    options: GenerateOptions,
    *,
    as_json: bool,
    verbose: bool,
) -> None:
    with client.stream(prompt, task=task, version=version, **options) as tokens:
        try:
            for token in tokens:
                output.write(token.model_dump_json() + "\n" if as_json else token.text)
        finally:
            if not as_json:  # so that an error, too, starts on a new line
                output.write("\n")
    if as_json:
        typer.echo(tokens.result.model_dump_json())
    elif verbose:
        _note(tokens.result)


def _note(answer: Generation) -> None:
    who = "base model" if answer.task is None else f"{answer.task} v{answer.version}"
    usage, timings = answer.usage, answer.timings
    tokens = (
        f"{usage.prefix_tokens} prefix + {usage.prompt_tokens} prompt "
        f"+ {usage.completion_tokens} completion tokens"
    )
    first = (
        "" if timings.first_token_ms is None else f"first token {timings.first_token_ms:.0f} ms, "
    )
    for text in answer.ranking or ():
        output.note(f"{text.probability:.3f}  {text.logprob:9.3f}  {text.text!r}")
    output.note(f"{who} · {tokens} · {first}{timings.total_ms:.0f} ms · {answer.finish_reason}")


def _rank(texts: list[str] | None, by: str | None) -> dict[str, Any] | None:
    if not texts:
        if by is not None:
            raise typer.BadParameter("goes with --rank", param_hint="--rank-by")
        return None
    return {"texts": texts} if by is None else {"texts": texts, "by": by}


def _fields(given: list[str] | None) -> dict[str, str] | None:
    pairs = [pair.partition("=") for pair in given or []]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise typer.BadParameter("write a field as NAME=VALUE", param_hint="--field")
    return {name: value for name, _, value in pairs} or None


def _from_stdin() -> str:
    """All of standard input, without the newline that a shell adds at the end."""
    if sys.stdin.isatty():
        raise typer.BadParameter("no prompt: pass one, or pipe one in", param_hint="PROMPT")
    return sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
