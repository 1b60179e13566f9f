"""Comparison of Foreword with its peers in one run, alternating, so that both see the same
conditions: ours, theirs, ours, theirs. Each ratio is of two adjacent measurements."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from foreword_bench import load, report, statistics, tables, target
from foreword_bench.errors import BenchError
from foreword_bench.peers import Peers
from foreword_bench.roofline import Model, Rates, Roofline
from foreword_bench.rows import Row
from foreword_bench.servers import Server
from foreword_bench.workload import Workload

Figures = dict[str, Any]
Side = Callable[[int], Figures]
"""Measures one side once. Takes the number of the round."""


def run(peers: Peers, rows: Iterable[Row], *, num_rounds: int) -> Iterator[Figures]:
    """Yield the result so far after every row, so that an interrupted run leaves one."""
    roofline = measured_roofline(peers)
    result: Figures = {
        "kind": "compare",
        "machine": report.machine(),
        "model": peers.model.name,
        "num_rounds": num_rounds,
        "flags": {"foreword": peers.choice.serve_flags, "vllm": peers.choice.vllm_flags},
        "vllm_env": peers.choice.vllm_env,
        "rates": None if roofline is None else asdict(roofline.rates),
        "rows": [],
        "left_out": [],
    }
    for row in rows:
        if reason := _missing(peers, row):
            result["left_out"].append({"title": row.title, "reason": reason})
            report.note(f"skipped: {row.title}: {reason}")
            continue
        report.note(f"{row.title}: {num_rounds} rounds ...")
        result["rows"].append(_run_row(peers, row, num_rounds, roofline))
        report.note(tables.row_line(result["rows"][-1]))
        yield result
    yield result


def _missing(peers: Peers, row: Row) -> str | None:
    if row.against == "vllm" and not peers.choice.has_peer:
        return "no vLLM; pass its virtual environment with --vllm DIR"
    if row.against in ("peft", "lora") and importlib.util.find_spec("peft") is None:
        return "peft is not installed"
    if row.resident is not None and peers.choice.foreword_url is not None:
        return "needs a server of its own, but --foreword-url was given"
    return None


def measured_roofline(peers: Peers) -> Roofline | None:
    """Measure the machine in a process of its own, before any server is busy."""
    if not peers.choice.roofline:
        return None
    if importlib.util.find_spec("torch") is None:
        report.note("no roofline: torch is not installed")
        return None
    return Roofline(Model.load(peers.model), Rates(**_own_process("roofline")))


def _own_process(*arguments: str) -> Figures:
    """Run a command of ours in a process, which frees its memory and threads. Return its result."""
    command = [sys.executable, "-m", "foreword_bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise BenchError(f"{arguments[0]} failed: {last[0]}")
    result: Figures = json.loads(done.stdout)["result"]
    return result


def _run_row(peers: Peers, row: Row, num_rounds: int, roofline: Roofline | None) -> Figures:
    with _sides(peers, row) as (ours, theirs):
        rounds = [{"ours": ours(i), "theirs": theirs(i)} for i in range(num_rounds)]
    ratios = [one["ours"]["out_tok_s"] / max(1e-9, one["theirs"]["out_tok_s"]) for one in rounds]
    medians = {
        "ours": _median([one["ours"] for one in rounds]),
        "theirs": _median([one["theirs"] for one in rounds]),
    }
    if roofline is not None:
        for side in medians.values():
            side["of_roofline"] = round(side["out_tok_s"] / roofline.tok_s(row.shape), 3)
    num_errors = medians["ours"]["errors"] + medians["theirs"]["errors"]
    return {
        "title": row.title,
        "row": asdict(row),
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "is_met": median(ratios) >= row.goal and num_errors == 0,
        "median": medians,
        "rounds": rounds,
    }


@contextmanager
def _sides(peers: Peers, row: Row) -> Iterator[tuple[Side, Side]]:
    with ExitStack() as stack:
        if row.resident is None:
            server = peers.foreword()
        else:
            num_tokens = row.tasks * row.prefix_tokens
            budget = int(row.resident * num_tokens * Model.load(peers.model).kv_bytes)
            server = stack.enter_context(peers.with_budget(budget))
        ours = _side(peers, server, row)
        if row.against == "vllm":
            yield ours, _side(peers, peers.peer(), row)
        elif row.against == "one task":
            yield ours, _side(peers, server, replace(row, tasks=1))
        else:
            yield ours, lambda i: _peft(peers, row, i)


def _side(peers: Peers, server: Server, row: Row) -> Side:
    where = target.find(server.url, num_tasks=row.tasks, num_prefix_tokens=row.prefix_tokens)

    def measure(round_: int) -> Figures:
        workload = Workload(
            num_requests=row.requests,
            concurrency=row.concurrency,
            prompt_lengths=(row.prompt_tokens,),
            num_new_tokens=row.new_tokens,
            seed=round_,
        )
        with _watching_others(peers, server) as figures:
            figures |= statistics.summary(asyncio.run(load.run(where, workload)))
        return figures

    return measure


def _peft(peers: Peers, row: Row, round_: int) -> Figures:
    options = {
        "--method": "lora" if row.against == "lora" else "prefix",
        "--tasks": row.tasks,
        "--prefix-tokens": row.prefix_tokens,
        "--requests": row.requests,
        "--prompt-tokens": row.prompt_tokens,
        "--new-tokens": row.new_tokens,
        "--seed": round_,
    }
    arguments = [str(part) for option in options.items() for part in option]
    with _watching_others(peers, None) as figures:
        figures |= {"server": row.against} | _own_process(
            "static-batch", str(peers.model), *arguments
        )
    return figures


@contextmanager
def _watching_others(peers: Peers, server: Server | None) -> Iterator[Figures]:
    """Record the share of a core that other servers use meanwhile: only one should be busy."""
    before_s, started_s = peers.others_cpu_s(server), time.monotonic()
    figures: Figures = {"server": server.name} if server else {}
    with peers.peer_stopped(server):
        yield figures
    others_s = peers.others_cpu_s(server) - before_s
    figures["others_cpu_share"] = round(others_s / (time.monotonic() - started_s), 4)


def _median(rounds: list[Figures]) -> Figures:
    def of(key: str) -> float | None:
        values = [figures[key]["p50"] for figures in rounds if key in figures]
        return median(values) if values and None not in values else None

    return {
        "server": rounds[0]["server"],
        "out_tok_s": median(figures["out_tok_s"] for figures in rounds),
        "ttft_p50_ms": of("ttft_ms"),
        "tpot_p50_ms": of("tpot_ms"),
        "errors": sum(sum(figures.get("errors", {}).values()) for figures in rounds),
        "others_cpu_share": max(figures["others_cpu_share"] for figures in rounds),
    }
