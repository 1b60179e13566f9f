"""Results as tables, with warnings about doubtful figures in red below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from foreword_bench import report

_IDLE_SHARE = 0.05
"""Max share of a core that an idle server may use while another is measured."""


def show_load(result: dict[str, Any]) -> None:
    """Print a run: latencies by percentile, then throughput."""
    figures, workload, where = result["result"], result["workload"], result["target"]
    rate, num_tasks = workload["rate"], where["num_tasks"]
    how = f"{rate:g} requests/s" if rate else f"concurrency {workload['concurrency']}"
    prefix = f"{num_tasks} tasks" if num_tasks else "no task"
    lengths = "/".join(map(str, workload["prompt_lengths"]))
    lengths += f" + {workload['num_new_tokens']} tokens"
    _show(
        f"{where['url']}: {how}, {prefix}, {lengths}",
        ("", "p50", "p90", "p99"),
        [
            (name, *(_ms(figures[key][p]) for p in ("p50", "p90", "p99")))
            for name, key in (
                ("time to first token, ms", "ttft_ms"),
                ("time per output token, ms", "tpot_ms"),
                ("whole request, ms", "e2e_ms"),
            )
        ],
    )
    out = report.console()
    out.print(
        f"[bold]{figures['out_tok_s']:,.1f} tokens/s[/bold], {figures['req_s']:.2f} requests/s "
        f"over {figures['duration_s']:.1f} s; the client used "
        f"{figures['client_cpu_us_per_token']:.0f} µs of CPU time per token"
    )
    for reason, count in figures["errors"].items():
        _doubt(f"{count} of {figures['requests']} requests failed: {reason}")
    if "swaps" in figures:
        _show_swaps(figures["swaps"])


def _show_swaps(swaps: dict[str, Any]) -> None:
    _show(
        f"{swaps['swaps']} swaps by {swaps['by']}, one every {swaps['every_s']:g} s",
        ("", "p50", "p90", "p99", "max"),
        [
            (name, *(_ms(swaps[key].get(p)) for p in ("p50", "p90", "p99", "max")))
            for name, key in (
                ("call to its 200, ms", "call_ms"),
                ("visible after the 200, ms", "visible_after_ms"),
                ("first token from the new version after the 200, ms", "first_token_after_ms"),
                ("longest gap in a stream near a swap, ms", "longest_gap_near_a_swap_ms"),
                ("longest gap between swaps, ms", "longest_gap_between_swaps_ms"),
            )
        ],
    )
    report.console().print(
        f"{swaps['stale_answers']} answers by the wrong version after a 200; usual gap between "
        f"tokens {_ms(swaps['usual_gap_ms'])} ms, stall at a swap {swaps['stall']:g} of it"
    )
    if swaps["stale_answers"]:
        _doubt("the wrong version answered after a swap")
    if swaps["visible_after_ms"]["max"] > swaps["visible_goal_ms"]:
        _doubt(f"a swap took longer than {swaps['visible_goal_ms']:g} ms to become visible")


def show_rates(result: dict[str, Any]) -> None:
    """Print the machine's limits."""
    copy, read, gemm = (result["result"][key] / 1e9 for key in ("copy", "read", "gemm"))
    _show(
        "Limits of this machine",
        ("", "GB/s or GFLOP/s"),
        [
            ("memory, copied (read + written)", f"{copy:.1f}"),
            ("memory, read", f"{read:.1f}"),
            ("bfloat16 products", f"{gemm:,.0f}"),
        ],
    )


def show_static_batch(result: dict[str, Any]) -> None:
    """Print the throughput in one line."""
    figures = result["result"]
    report.console().print(f"{figures['requests']} requests: {figures['out_tok_s']:,.1f} tokens/s")


def show_compare(result: dict[str, Any]) -> None:
    """Print medians, ratios and goals of all rows, then warnings about doubtful figures."""
    machine = result["machine"]
    _show(
        f"{result['model']} on {machine['processor']}, {machine['cores']} cores, "
        f"{result['num_rounds']} alternating rounds, {machine['at']}",
        (
            "concurrency, tasks / against",
            "ours tok/s", "theirs tok/s", "ratio", "spread", "goal", "",
            "TTFT p50 ms", "theirs", "of roofline", "theirs",
        ),
        [_cells(row) for row in result["rows"]],
    )  # fmt: skip
    for row in result["rows"]:
        for side in row["median"].values():
            if side["errors"]:
                _doubt(f"{row['title']}: {side['errors']} requests of {side['server']} failed")
            if side["others_cpu_share"] > _IDLE_SHARE:
                share = f"{side['others_cpu_share']:.0%} of a core"
                _doubt(f"{row['title']}: while {side['server']} ran, idle servers used {share}")
    for left in result["left_out"]:
        _doubt(f"skipped: {left['title']}: {left['reason']}")


def _cells(row: dict[str, Any]) -> list[str]:
    ours, theirs = row["median"]["ours"], row["median"]["theirs"]
    return [
        row["title"],
        f"{ours['out_tok_s']:,.1f}",
        f"{theirs['out_tok_s']:,.1f}",
        f"{row['ratio']:.2f}",
        f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}",
        f"{row['row']['goal']:g}",
        "met" if row["is_met"] else "[red]missed[/red]",
        _ms(ours["ttft_p50_ms"]),
        _ms(theirs["ttft_p50_ms"]),
        _share(ours.get("of_roofline")),
        _share(theirs.get("of_roofline")),
    ]


def row_line(row: dict[str, Any]) -> str:
    """Format a finished row in one line."""
    sides = row["median"]
    ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
    return (
        f"  {sides['ours']['out_tok_s']:,.1f} / {sides['theirs']['out_tok_s']:,.1f} tokens/s, "
        f"ratios {ratios}"
    )


def show_sweep(result: dict[str, Any]) -> None:
    """Print all points, in the order they were measured."""
    over = result["over"]
    _show(
        f"{result['model']} over {over}, {result['machine']['at']}",
        (
            over, "server", "tok/s", "of roofline",
            "TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "roofline step ms",
        ),
        [
            (
                str(point[over]),
                point["server"],
                f"{point['result']['out_tok_s']:,.1f}",
                _share(_of_roofline(point)),
                _ms(point["result"]["ttft_ms"]["p50"]),
                _ms(point["result"]["ttft_ms"]["p99"]),
                _ms(point["result"]["tpot_ms"]["p50"]),
                _ms(point["result"]["tpot_ms"]["p99"]),
                _ms(point.get("roofline_step_ms")),
            )
            for point in result["points"]
        ],
    )  # fmt: skip
    for point in result["points"]:
        for reason, count in point["result"]["errors"].items():
            _doubt(f"{point['server']}, {over} {point[over]}: {count} requests failed: {reason}")


def _of_roofline(point: dict[str, Any]) -> float | None:
    limit = point.get("roofline_tok_s")
    return None if limit is None else point["result"]["out_tok_s"] / limit


def _show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table. All columns but the first are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    out = report.console()
    out.print(f"\n{title}", style="bold", markup=False, soft_wrap=True)
    out.print(table)


def _ms(value: float | None) -> str:
    """Format milliseconds for a table."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _doubt(text: str) -> None:
    report.console().print(text, style="red", markup=False)
