"""`foreword generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foreword_client.cli import arguments, output
from foreword_client.client import Client
from foreword_client.types import GenerateOptions, Generation


def _sampling(*names: str, **options: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Sampling (default: the task's)", **options)


def _form(**options: Any) -> Any:
    return typer.Option(rich_help_panel="Form of the answer (default: the task's)", **options)


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The prompt. Left out, or -: standard input."),
]
Task = Annotated[
    str | None,
    typer.Option("--task", "-t", metavar="TASK", help="The task. Default: the bare base model."),
]
Version = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="A version of the task. Default: the active one."),
]
Messages = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="A JSON file with chat messages, in place of a prompt.",
    ),
]
MaxTokens = Annotated[int | None, _sampling(min=1, metavar="N", help="Maximum number of tokens.")]
Temperature = Annotated[float | None, _sampling(min=0, metavar="X", help="0 is greedy.")]
TopP = Annotated[float | None, _sampling(min=0, max=1, metavar="X", help="Nucleus.")]
TopK = Annotated[int | None, _sampling(min=0, metavar="N", help="0 is all tokens.")]
MinP = Annotated[
    float | None,
    _sampling(
        min=0, max=1, metavar="X", help="Drop tokens below this share of the top probability."
    ),
]
Seed = Annotated[int | None, _sampling(min=0, metavar="N", help="Same seed, same tokens.")]
Stop = Annotated[
    list[str] | None, _sampling(metavar="TEXT", help="Stop before this text. Repeatable.")
]
StopTokenIds = Annotated[
    list[int] | None, _sampling(min=0, metavar="ID", help="Stop at this token. Repeatable.")
]
IgnoreEos = Annotated[
    bool, _sampling("--ignore-eos", help="Continue to --max-tokens past the model's end.")
]
JsonSchema = Annotated[
    Path | None,
    _form(exists=True, dir_okay=False, metavar="FILE", help="Answer with JSON of this schema."),
]
Regex = Annotated[
    str | None, _form(metavar="R", help="Answer with a full match of this regular expression.")
]
Choice = Annotated[
    list[str] | None, _form(metavar="TEXT", help="Generate one of these texts. Repeatable.")
]
Rank = Annotated[
    list[str] | None,
    _form(
        metavar="TEXT",
        help="Score these texts and answer with the most likely (-v: all scores). Repeatable.",
    ),
]
RankBy = Annotated[
    str | None,
    _form(
        metavar="sum|mean",
        help="Rank by the sum (default) or the mean of the tokens' log-probabilities.",
    ),
]
Priority = Annotated[
    int | None,
    typer.Option(metavar="N", help="Lower runs earlier within the task. Default: 0."),
]
TrafficKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Same key, same version, where versions share the traffic."),
]
Streams = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Write tokens as they come. Default: on a terminal.",
        show_default=False,
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print version, tokens and times afterwards.")
]


def generate(
    ctx: typer.Context,
    prompt: Prompt = None,
    task: Task = None,
    version: Version = None,
    messages: Messages = None,
    field: arguments.Fields = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    seed: Seed = None,
    stop: Stop = None,
    stop_token_id: StopTokenIds = None,
    ignore_eos: IgnoreEos = False,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choice = None,
    rank: Rank = None,
    rank_by: RankBy = None,
    priority: Priority = None,
    traffic_key: TrafficKey = None,
    stream: Streams = None,
    verbose: Verbose = False,
    as_json: arguments.AsJson = False,
) -> None:
    """Complete a prompt after a task's prefix.

    With --json the answer is one document; with --json --stream, one event a line.
    """
    options: GenerateOptions = {
        "messages": None if messages is None else arguments.messages(messages),
        "fields": arguments.template_fields(field),
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
        run = _stream if streams else _whole
        run(client, prompt, task, version, options, as_json=as_json, verbose=verbose)


def _whole(
    client: Client,
    prompt: str | None,
    task: str | None,
    version: int | None,
    options: GenerateOptions,
    *,
    as_json: bool,
    verbose: bool,
) -> None:
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


def _from_stdin() -> str:
    """All of standard input, without the newline that a shell adds at the end."""
    if sys.stdin.isatty():
        raise typer.BadParameter("no prompt: pass one, or pipe one in", param_hint="PROMPT")
    return sys.stdin.buffer.read().decode(errors="replace").removesuffix("\n")
