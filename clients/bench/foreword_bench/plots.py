"""Plots of results: sweeps as lines, comparisons as ratios with their goals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Point = dict[str, Any]

_COLOURS = ("#2458a6", "#c2571a", "#3a7d44", "#7b4b94")


def draw(results: Iterable[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw all plots that the results have data for. Return the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for result in results:
        for name, plot in _plots(result):
            paths.append(_save(folder / f"{name}.png", _caption(result), plot))
    return paths


def _plots(result: dict[str, Any]) -> list[tuple[str, Callable[[Figure], None]]]:
    if result["kind"] == "compare":
        return [("compare", lambda figure: _compare(figure, result["rows"]))]
    if result["kind"] != "sweep":
        return []
    points, over = result["points"], result["over"]
    if over == "tasks":
        return [("throughput_over_tasks", lambda figure: _throughput(figure, points, over))]
    return [
        ("throughput_over_concurrency", lambda figure: _throughput(figure, points, over)),
        ("latency_over_concurrency", lambda figure: _latency(figure, points)),
        ("step_time", lambda figure: _step_time(figure, points)),
    ]


def _caption(result: dict[str, Any]) -> str:
    """Describe what was measured, and on which machine."""
    machine = result["machine"]
    where = f"{result['model']}, {machine['processor']}, {machine['cores']} cores"
    if result["kind"] == "compare":
        return f"{where}, {result['num_rounds']} rounds in turn"
    load = result["workload"]
    tasks = f"{load['num_tasks']} tasks" if result["over"] == "concurrency" else ""
    at_a_time = f"{load['concurrency']} concurrent requests" if result["over"] == "tasks" else ""
    lengths = "/".join(map(str, load["prompt_lengths"]))
    return (
        f"{where}\n{tasks or at_a_time}, prefixes of {load['num_prefix_tokens']} tokens, "
        f"{lengths} prompt + {load['num_new_tokens']} new tokens"
    )


def _save(path: Path, caption: str, plot: Callable[[Figure], None]) -> Path:
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    figure.suptitle(caption, fontsize=8, color="#444444")
    plot(figure)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def _throughput(figure: Figure, points: Sequence[Point], over: str) -> None:
    axes = figure.add_subplot()
    _lines(axes, points, over, lambda point: point["result"]["out_tok_s"])
    _limit(axes, points, over, "roofline_tok_s")
    label = "concurrent requests" if over == "concurrency" else "tasks, each with its prefix"
    _finish(axes, points, over, label, "output tokens per second")


def _latency(figure: Figure, points: Sequence[Point]) -> None:
    """Draw two panels: p50 as a line, p90 dotted, and the range from p50 to p99 shaded."""
    for i, (key, title) in enumerate(
        (("ttft_ms", "time to first token, ms"), ("tpot_ms", "time per output token, ms"))
    ):
        axes = figure.add_subplot(1, 2, i + 1)
        for (name, own), colour in zip(_by_server(points).items(), _COLOURS, strict=False):
            x = [point["concurrency"] for point in own]
            p50, p90, p99 = (
                [point["result"][key][p] for point in own] for p in ("p50", "p90", "p99")
            )
            axes.plot(x, p50, "o-", color=colour, label=f"{name}, p50")
            axes.plot(x, p90, ":", color=colour, label="p90")
            axes.fill_between(x, p50, p99, color=colour, alpha=0.15, label="to p99", linewidth=0)
        _finish(axes, points, "concurrency", "concurrent requests", title)


def _step_time(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.add_subplot()
    _lines(axes, points, "concurrency", lambda point: point["result"]["tpot_ms"]["p50"])
    _limit(axes, points, "concurrency", "roofline_step_ms")
    _finish(
        axes,
        points,
        "concurrency",
        "concurrent requests",
        "decode step (time per output token, p50), ms",
    )


def _compare(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    """Draw each ratio as a dot with its spread, and its goal as a black mark."""
    axes = figure.add_subplot()
    figure.set_figheight(1.7 + 0.35 * len(rows))
    for i, row in enumerate(rows):
        ratio, ratios, goal = row["ratio"], row["ratios"], row["row"]["goal"]
        colour = _COLOURS[0] if row["is_met"] else _COLOURS[1]
        axes.plot([min(ratios), max(ratios)], [i, i], color=colour, linewidth=2)
        axes.plot(ratio, i, "o", color=colour, markersize=8)
        axes.plot([goal, goal], [i - 0.3, i + 0.3], color="black", linewidth=2)
        at = (max(*ratios, goal), i)
        text = f"{ratio:.2f}"
        axes.annotate(text, at, xytext=(9, 0), textcoords="offset points", va="center")
    axes.axvline(1, color="#888888", linewidth=1)
    largest = max(1.0, *(max(*row["ratios"], row["row"]["goal"]) for row in rows))
    smallest = min(1.0, *(min(*row["ratios"], row["row"]["goal"]) for row in rows))
    axes.set_xscale("log", base=2)
    axes.set_xlim(smallest / 1.2, largest * 1.8)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("throughput, ours / theirs; black: the goal; orange: missed")


def _lines(axes: Axes, points: Sequence[Point], over: str, of: Callable[[Point], float]) -> None:
    for (name, own), colour in zip(_by_server(points).items(), _COLOURS, strict=False):
        axes.plot([p[over] for p in own], [of(p) for p in own], "o-", color=colour, label=name)


def _limit(axes: Axes, points: Sequence[Point], over: str, key: str) -> None:
    limits = dict(sorted((point[over], point[key]) for point in points if key in point))
    if limits:
        axes.plot(list(limits), list(limits.values()), "--", color="#666666", label="roofline")


def _finish(axes: Axes, points: Sequence[Point], over: str, x: str, y: str) -> None:
    ticks = sorted({point[over] for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _by_server(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Group points by server, in order of their first points."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point["server"], []).append(point)
    return found
