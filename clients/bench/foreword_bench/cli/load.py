"""`foreword bench load`"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated

import typer

from foreword_bench import load as loads
from foreword_bench import report, statistics, swap, tables, target
from foreword_bench.cli import options
from foreword_bench.errors import BenchError
from foreword_bench.workload import Workload


def load(
    url: Annotated[str, typer.Argument(help="Of a Foreword or an OpenAI-compatible server.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="A task or model, asked in turn. Repeatable. Default: the first listed."),
    ] = None,
    tasks: options.Tasks = 0,
    prefix_tokens: options.PrefixTokens = 256,
    concurrency: options.Concurrency = 8,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Open loop: requests a second at random times (Poisson), however many run.",
        ),
    ] = None,
    requests: options.Requests = 64,
    prompt_tokens: options.PromptTokens = "32",
    new_tokens: options.NewTokens = 64,
    json_schema_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="So many of the requests want JSON of a schema."),
    ] = 0.0,
    api: Annotated[
        target.Api, typer.Option(help="/v1/completions, or Foreword's own /generate.")
    ] = "openai",
    text_prompts: Annotated[
        bool,
        typer.Option("--text-prompts", help="For servers that take no token ids; lengths vary."),
    ] = False,
    swap_every: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="SECONDS",
            help="Meanwhile give the first task another version this often, and measure how soon "
            "it answers and whether running streams stall. Needs --tasks and a Foreword server.",
        ),
    ] = None,
    swap_by: Annotated[
        swap.By, typer.Option(help="Upload a version each time, or activate one of two in turn.")
    ] = "upload",
    seed: options.Seed = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until a request failed.")] = 600,
    api_key: options.ApiKey = None,
    json: options.Json = None,
) -> None:
    """Put load on a server and measure what comes back.

    Every prompt is another one, completions are streamed, greedy and of fixed length. Before the
    clock starts, every task is asked once. Ends with 1 if any request failed, or if the wrong
    version answered after a swap.
    """
    if model and tasks:
        raise BenchError("--model or --tasks, not both")
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
    swapper = None
    if swap_every:
        swapper = swap.Swapper(where, swap_every, by=swap_by, api_key=api_key)
    run = asyncio.run(
        loads.run(where, workload, api_key=api_key, timeout_s=timeout, beside=swapper)
    )
    figures = statistics.summary(run)
    if swapper is not None:
        how = {"every_s": swap_every, "by": swap_by}
        figures["swaps"] = swap.summary(swapper.swaps, run.answers) | how
    result = report.result(
        "load",
        figures,
        target=dataclasses.asdict(where) | {"num_tasks": where.num_tasks},
        workload=dataclasses.asdict(workload),
    )
    report.tell(result, json, tables.show_load)
    if figures["errors"] or (swapper is not None and figures["swaps"]["stale_answers"]):
        raise typer.Exit(1)
