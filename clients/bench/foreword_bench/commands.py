"""The command line."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shlex
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from foreword_bench import compare as compare_
from foreword_bench import load as load_
from foreword_bench import report, statistics, swap, target
from foreword_bench import roofline as roofline_
from foreword_bench.errors import BenchError
from foreword_bench.peers import Peers
from foreword_bench.rows import ROWS
from foreword_bench.workload import Workload

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="""Measure Foreword, and what people would use instead, with the same code.

[bold]foreword bench load http://127.0.0.1:8000 --tasks 8 --concurrency 32[/bold]
""",
)

Concurrency = Annotated[int, typer.Option(min=1, help="Requests at a time (closed loop).")]
Requests = Annotated[int, typer.Option(min=1, help="Requests in all.")]
PromptTokens = Annotated[
    str,
    typer.Option(
        metavar="N[,N...]", help="Tokens of a prompt; of several lengths each request draws one."
    ),
]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens of each completion.")]
Tasks = Annotated[
    int,
    typer.Option(
        min=0,
        help="So many tasks, asked in turn, each with a random prefix: a Foreword server gets them "
        "uploaded as trained prefixes, any other gets as many tokens of text before each prompt.",
    ),
]
PrefixTokens = Annotated[int, typer.Option(min=1, help="Tokens of each task's prefix.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="FOREWORD_API_KEY", help="Sent as a bearer token.", show_default=False),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result; - is stdout.")
]
Seed = Annotated[int, typer.Option(help="Of prompts and arrivals.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads to use.")]

_CORES = os.cpu_count() or 1


@app.command()
def load(
    url: Annotated[str, typer.Argument(help="Of a Foreword or an OpenAI-compatible server.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="A task or model, asked in turn. Repeatable. Default: the first listed."),
    ] = None,
    tasks: Tasks = 0,
    prefix_tokens: PrefixTokens = 256,
    concurrency: Concurrency = 8,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Open loop: requests a second at random times (Poisson), however many run.",
        ),
    ] = None,
    requests: Requests = 64,
    prompt_tokens: PromptTokens = "32",
    new_tokens: NewTokens = 64,
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
            help="Meanwhile give the first task a new version this often, and measure how soon it "
            "answers and whether running streams stall. Needs --tasks and a Foreword server.",
        ),
    ] = None,
    seed: Seed = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until a request failed.")] = 600,
    api_key: ApiKey = None,
    json: Json = None,
) -> None:
    """Put load on a server and measure what comes back.

    Every prompt is another one, completions are streamed, greedy and of fixed length. Before the
    clock starts, every task is asked once. Ends with 1 if any request failed, or if an old version
    answered after a swap.
    """
    if model and tasks:
        raise BenchError("--model or --tasks, not both")
    workload = Workload(
        num_requests=requests,
        concurrency=concurrency,
        rate=rate,
        prompt_lengths=_lengths(prompt_tokens),
        num_new_tokens=new_tokens,
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
    swapper = swap.Swapper(where, swap_every, api_key=api_key) if swap_every else None
    run = asyncio.run(
        load_.run(where, workload, api_key=api_key, timeout_s=timeout, beside=swapper)
    )
    figures = statistics.summary(run)
    if swapper is not None:
        figures["swaps"] = swap.summary(swapper.swaps, run.answers) | {"every_s": swap_every}
    result = _result(
        "load",
        figures,
        target=dataclasses.asdict(where) | {"num_tasks": where.num_tasks},
        workload=dataclasses.asdict(workload),
    )
    report.tell(result, json, report.show_load)
    if figures["errors"] or (swapper is not None and figures["swaps"]["stale_answers"]):
        raise typer.Exit(1)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(length) for length in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) < 1:
        raise BenchError(f"--prompt-tokens {text}: write lengths as 32 or 16,64,256")
    return lengths


@app.command()
def compare(
    model: Annotated[
        Path,
        typer.Option(
            metavar="DIR", exists=True, file_okay=False, help="The model's folder, for all servers."
        ),
    ],
    vllm: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="vLLM's virtual environment; it is started from there."),
    ] = None,
    foreword_url: Annotated[
        str | None, typer.Option(metavar="URL", help="A Foreword server that runs already.")
    ] = None,
    peer_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server to compare with, for vLLM."),
    ] = None,
    serve_flags: Annotated[
        str, typer.Option(metavar="TEXT", help="Options for `foreword serve`.")
    ] = "",
    vllm_flags: Annotated[
        str, typer.Option(metavar="TEXT", help="Further options for `vllm serve`.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Each is one measurement of either side.")] = 3,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Only rows whose name contains this. Repeatable."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For logs and prefix stores. Default: a temporary one."),
    ] = None,
    json: Json = None,
) -> None:
    """Reproduce the CPU tables of docs/benchmarks.md: ours and theirs in one run, in turn.

    Starts the servers, measures row by row, and tells medians, ratios and goals. A ratio is the
    median over rounds of ours / theirs. Rows whose peer is not there are left out, and named.
    """
    wanted = [r for r in ROWS if not row or any(part in r.title for part in row)]
    if not wanted:
        raise BenchError(f"no such row; there are: {'; '.join(r.title for r in ROWS)}")
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="foreword-bench-")))
        peers = Peers(
            model=model.resolve(),
            folder=folder,
            stack=stack,
            foreword_url=foreword_url,
            peer_url=peer_url,
            vllm_venv=vllm,
            serve_flags=shlex.split(serve_flags),
            vllm_flags=shlex.split(vllm_flags),
        )
        for result in compare_.run(peers, wanted, num_rounds=rounds):
            if json is not None and str(json) != "-":
                report.tell(result, json, show=lambda _: None)
    report.tell(result, json, report.show_compare)


@app.command()
def roofline(json: Json = None, threads: Threads = _CORES) -> None:
    """Measure what this machine allows: memory copied and read, bfloat16 products. Needs torch."""
    rates = roofline_.measure(threads)
    result = _result("roofline", dataclasses.asdict(rates))
    report.tell(result, json, report.show_rates)


@app.command()
def static_batch(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The model's folder.")],
    tasks: Annotated[int, typer.Option(min=1, help="Tasks, an adapter for each.")] = 16,
    prefix_tokens: PrefixTokens = 64,
    requests: Requests = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    new_tokens: NewTokens = 64,
    threads: Threads = _CORES,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Run PEFT as its users do: one task a batch, one batch after the other."""
    from foreword_bench import static_batch as static  # torch only where it is needed

    workload = Workload(
        num_requests=requests,
        prompt_lengths=(prompt_tokens,),
        num_new_tokens=new_tokens,
        seed=seed,
    )
    figures = static.run(
        model, workload, num_tasks=tasks, num_prefix_tokens=prefix_tokens, num_threads=threads
    )
    report.tell(_result("static-batch", figures), json, report.show_static_batch)


def _result(kind: str, figures: dict[str, Any], **context: Any) -> dict[str, Any]:
    return {"kind": kind, "machine": report.machine()} | context | {"result": figures}
