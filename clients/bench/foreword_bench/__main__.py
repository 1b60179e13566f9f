"""`foreword bench`: every command prints one JSON object."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Annotated

import typer

from foreword_bench import load as load_
from foreword_bench.prefixes import upload_random
from foreword_bench.workload import Workload

app = typer.Typer(name="foreword bench", no_args_is_help=True, add_completion=False, help=__doc__)

Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time.")]
Requests = Annotated[int, typer.Option(min=1, help="Requests in all.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens of each completion.")]
PrefixTokens = Annotated[int, typer.Option(min=1, help="Tokens of each prefix.")]
Tasks = Annotated[int, typer.Option(min=1, help="Tasks, each with a prefix of its own.")]


@app.command()
def load(
    url: str,
    model: Annotated[list[str], typer.Option(help="Task or model name; repeat for several.")],
    concurrency: Concurrency = 32,
    requests: Requests = 128,
    prompt_tokens: PromptTokens = 32,
    new_tokens: NewTokens = 64,
    text_prefixes: Annotated[int, typer.Option(min=0, help="Text prefixes, for peers.")] = 0,
    prefix_tokens: PrefixTokens = 256,
) -> None:
    """Closed-loop load on an OpenAI-compatible /v1/completions."""
    target = load_.Target(url, model, text_prefixes, prefix_tokens)
    workload = Workload(concurrency, requests, prompt_tokens, new_tokens)
    try:
        typer.echo(json.dumps(asyncio.run(load_.run(target, workload))))
    except load_.LoadError as exc:
        typer.echo(str(exc), err=True)
        raise typer.Exit(1) from None


@app.command()
def random_prefixes(url: str, tasks: Tasks = 8, tokens: PrefixTokens = 256) -> None:
    """Give a Foreword server tasks bench-0, bench-1, ... with random prefixes."""
    typer.echo(json.dumps({"tasks": upload_random(url, tasks, tokens)}))


@app.command()
def static_batch(
    model_dir: str,
    concurrency: Concurrency = 32,
    requests: Requests = 128,
    prompt_tokens: PromptTokens = 32,
    new_tokens: NewTokens = 64,
    tasks: Tasks = 8,
    prefix_tokens: PrefixTokens = 256,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """transformers' generate in bfloat16, a batch for each task, one after the other."""
    from foreword_bench import static_batch as static  # torch only where it is needed

    workload = Workload(concurrency, requests, prompt_tokens, new_tokens)
    result = static.run(
        model_dir,
        workload,
        num_tasks=tasks,
        num_prefix_tokens=prefix_tokens,
        num_threads=threads,
    )
    typer.echo(json.dumps(result))


def main(argv: list[str] | None = None) -> None:
    app(args=argv)


if __name__ == "__main__":
    main()
