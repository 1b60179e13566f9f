"""`foreword bench compare` and `foreword bench sweep`: servers side by side"""

from __future__ import annotations

import shlex
from typing import Annotated, Any

import typer

from foreword_bench import compare as comparison
from foreword_bench import report, tables
from foreword_bench import sweep as sweeps
from foreword_bench.cli import options
from foreword_bench.errors import BenchError
from foreword_bench.peers import Choice, peers_of
from foreword_bench.rows import ROWS


def compare(
    model: options.ModelFolder = None,
    vllm: options.Vllm = None,
    foreword_url: options.ForewordUrl = None,
    peer_url: options.PeerUrl = None,
    serve_flags: options.ServeFlags = "",
    vllm_flags: options.VllmFlags = "",
    vllm_env: options.VllmEnv = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of rounds. Each measures both sides once.")
    ] = 3,
    row: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Only rows whose title contains this. Repeatable."),
    ] = None,
    folder: options.Folder = None,
    roofline: options.Roofline = True,
    as_json: options.AsJson = False,
    output: options.Output = None,
) -> None:
    """Reproduce the CPU tables of docs/benchmarks.md: ours and theirs alternate in one run.

    Starts the servers, measures row by row, and prints medians, ratios and goals. A ratio is the
    median over rounds of ours / theirs. Rows whose peer is missing are skipped and listed.
    """
    wanted = [r for r in ROWS if not row or any(part in r.title for part in row)]
    if not wanted:
        raise BenchError(f"no such row; there are: {'; '.join(r.title for r in ROWS)}")
    result: dict[str, Any] = {}
    choice = Choice(
        model=model,
        folder=folder,
        foreword_url=foreword_url,
        peer_url=peer_url,
        vllm=vllm,
        serve_flags=shlex.split(serve_flags),
        vllm_flags=shlex.split(vllm_flags),
        vllm_env=options.environment(vllm_env),
        roofline=roofline,
    )
    with peers_of(choice) as peers:
        for result in comparison.run(peers, wanted, num_rounds=rounds):
            report.keep(result, output)
    report.emit(result, tables.show_compare, as_json=as_json, output=output)


def sweep(
    over: Annotated[sweeps.Over, typer.Argument(help="The parameter to sweep over.")],
    values: Annotated[
        str | None,
        typer.Option(
            metavar="N,N...",
            help="Its values. Default: concurrency 1 to 64, or 1 to 256 tasks.",
            show_default=False,
        ),
    ] = None,
    concurrency: options.Concurrency = 32,
    tasks: options.Tasks = 8,
    prefix_tokens: options.PrefixTokens = 64,
    prompt_tokens: options.PromptTokens = "32",
    new_tokens: options.NewTokens = 64,
    waves: Annotated[
        int, typer.Option(min=1, help="Requests per point, as a multiple of its concurrency.")
    ] = 3,
    model: options.ModelFolder = None,
    vllm: options.Vllm = None,
    foreword_url: options.ForewordUrl = None,
    peer_url: options.PeerUrl = None,
    serve_flags: options.ServeFlags = "",
    vllm_flags: options.VllmFlags = "",
    vllm_env: options.VllmEnv = None,
    folder: options.Folder = None,
    roofline: options.Roofline = True,
    as_json: options.AsJson = False,
    output: options.Output = None,
) -> None:
    """Measure a load over concurrency or over the number of tasks.

    With a peer, the servers alternate at every point. `foreword bench plot` draws the result.
    """
    result: dict[str, Any] = {}
    points = sweeps.Points(
        over=over,
        values=options.lengths(values) if values else sweeps.DEFAULT[over],
        concurrency=concurrency,
        num_tasks=tasks,
        num_prefix_tokens=prefix_tokens,
        prompt_lengths=options.lengths(prompt_tokens),
        num_new_tokens=new_tokens,
        num_waves=waves,
    )
    choice = Choice(
        model=model,
        folder=folder,
        foreword_url=foreword_url,
        peer_url=peer_url,
        vllm=vllm,
        serve_flags=shlex.split(serve_flags),
        vllm_flags=shlex.split(vllm_flags),
        vllm_env=options.environment(vllm_env),
        roofline=roofline,
    )
    with peers_of(choice) as peers:
        for result in sweeps.run(peers, points):
            report.keep(result, output)
    report.emit(result, tables.show_sweep, as_json=as_json, output=output)
