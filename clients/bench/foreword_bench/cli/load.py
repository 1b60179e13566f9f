"""`foreword bench load`"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated, Any

import typer

from foreword_bench import load as loads
from foreword_bench import report, statistics, swap, tables, target
from foreword_bench.cli import options
from foreword_bench.workload import Workload

Url = Annotated[
    str,
    typer.Argument(
        envvar="FOREWORD_URL", help="Address of a Foreword or an OpenAI-compatible server."
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(help="A task or model, used in turn. Repeatable. Default: the first listed."),
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Open loop: requests per second at random times (Poisson), however many run.",
    ),
]
JsonSchemaShare = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the requests that want JSON of a schema.")
]
Api = Annotated[target.Api, typer.Option(help="/v1/completions, or Foreword's own /generate.")]
TextPrompts = Annotated[
    bool,
    typer.Option("--text-prompts", help="For servers that accept no token ids; lengths vary."),
]
SwapEvery = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="SECONDS",
        help="Switch the first task to another version this often, and measure when it takes "
        "effect and whether running streams stall. Needs --tasks and a Foreword server.",
    ),
]
SwapBy = Annotated[
    swap.By, typer.Option(help="Upload a new version each time, or activate one of two in turn.")
]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds until a request counts as failed.")]


def load(
    url: Url,
    model: Models = None,
    tasks: options.Tasks = 0,
    prefix_tokens: options.PrefixTokens = 256,
    concurrency: options.Concurrency = 8,
    rate: Rate = None,
    requests: options.Requests = 64,
    prompt_tokens: options.PromptTokens = "32",
    new_tokens: options.NewTokens = 64,
    json_schema_share: JsonSchemaShare = 0.0,
    api: Api = "openai",
    text_prompts: TextPrompts = False,
    swap_every: SwapEvery = None,
    swap_by: SwapBy = "upload",
    seed: options.Seed = 0,
    timeout: Timeout = 600,
    api_key: options.ApiKey = None,
    as_json: options.AsJson = False,
    output: options.Output = None,
) -> None:
    """Put load on a server and measure it.

    Prompts differ; completions are streamed, greedy and of fixed length. Each task gets one warm-up
    request first. Exits with 1 if a request failed, or if a swap was followed by the old version.
    """
    if model and tasks:
        raise typer.BadParameter("give --model or --tasks, not both")
    workload = Workload(
        num_requests=requests,
        concurrency=concurrency,
        rate=rate,
        prompt_lengths=options.lengths(prompt_tokens),
        num_new_tokens=new_tokens,
        json_share=json_schema_share,
        seed=seed,
    )
    where = target.find(
        url,
        models=model or (),
        num_tasks=tasks,
        num_prefix_tokens=prefix_tokens,
        api=api,
        as_text=text_prompts,
        api_key=api_key,
    )
    swapper = swap.Swapper(where, swap_every, by=swap_by, api_key=api_key) if swap_every else None
    figures = _measure(where, workload, swapper, api_key=api_key, timeout_s=timeout)
    if swapper is not None:
        figures["swaps"] |= {"every_s": swap_every, "by": swap_by}
    result = report.result(
        "load",
        figures,
        target=dataclasses.asdict(where) | {"num_tasks": where.num_tasks},
        workload=dataclasses.asdict(workload),
    )
    report.emit(result, tables.show_load, as_json=as_json, output=output)
    if figures["errors"] or (swapper is not None and figures["swaps"]["stale_answers"]):
        raise typer.Exit(1)


def _measure(
    where: target.Target,
    workload: Workload,
    swapper: swap.Swapper | None,
    *,
    api_key: str | None,
    timeout_s: float,
) -> dict[str, Any]:
    run = asyncio.run(
        loads.run(where, workload, api_key=api_key, timeout_s=timeout_s, background=swapper)
    )
    figures = statistics.summary(run)
    if swapper is not None:
        figures["swaps"] = swap.summary(swapper.swaps, run.answers)
    return figures
