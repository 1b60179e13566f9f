"""The command line of `foreword bench`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from foreword_bench import report, tables
from foreword_bench import roofline as rooflines
from foreword_bench.cli import options
from foreword_bench.cli.compare import compare, sweep
from foreword_bench.cli.load import load
from foreword_bench.errors import BenchError
from foreword_bench.workload import Workload

_HELP = """Benchmark Foreword and its alternatives with the same code.

[bold]foreword bench load http://127.0.0.1:8000 --tasks 8 --concurrency 32[/bold]

[bold]foreword bench compare --vllm DIR --output compare.json[/bold]
"""


def roofline(
    as_json: options.AsJson = False,
    output: options.Output = None,
    threads: options.Threads = options.CORES,
) -> None:
    """Measure the machine's limits: memory copies and reads, bfloat16 products. Needs torch."""
    rates = rooflines.measure(threads)
    result = report.result("roofline", dataclasses.asdict(rates))
    report.emit(result, tables.show_rates, as_json=as_json, output=output)


def static_batch(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The model's folder.")],
    method: Annotated[
        Literal["prefix", "lora"],
        typer.Option(help="Prefixes, with a batch per task; or LoRA, with all tasks in one batch."),
    ] = "prefix",
    tasks: Annotated[int, typer.Option(min=1, help="Number of tasks, each with an adapter.")] = 16,
    prefix_tokens: options.PrefixTokens = 64,
    requests: options.Requests = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 32,
    new_tokens: options.NewTokens = 64,
    threads: options.Threads = options.CORES,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    output: options.Output = None,
) -> None:
    """Run PEFT without a server, as its users do."""
    from foreword_bench import static_batch as static  # torch only where it is needed

    workload = Workload(
        num_requests=requests,
        prompt_lengths=(prompt_tokens,),
        num_new_tokens=new_tokens,
        seed=seed,
    )
    figures = static.run(
        model,
        workload,
        method=method,
        num_tasks=tasks,
        num_prefix_tokens=prefix_tokens,
        num_threads=threads,
    )
    report.emit(
        report.result("static-batch", figures),
        tables.show_static_batch,
        as_json=as_json,
        output=output,
    )


def plot(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT.json...", exists=True, dir_okay=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the plots.")
    ] = Path(),
) -> None:
    """Plot results of `sweep` and `compare` as PNG files. Needs matplotlib."""
    try:
        from foreword_bench import plots
    except ImportError:
        raise BenchError("plots need matplotlib: pip install 'foreword-bench[plots]'") from None
    paths = plots.draw([json.loads(path.read_text("utf-8")) for path in results], output)
    if not paths:
        raise BenchError("nothing to plot: pass results of `sweep` or `compare`")
    for path in paths:
        typer.echo(path)


def make_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode="rich",
        help=_HELP,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    for command in (load, compare, sweep, plot, roofline, static_batch):
        app.command()(command)
    return app
