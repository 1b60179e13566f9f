"""Plots of results: sweeps as lines, comparisons as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Point = dict[str, Any]

_COLOURS = ("#2458a6", "#c2571a", "#3a7d44", "#7b4b94")


def draw(results: Iterable[dict[str, Any]], folder: Path) -> list[Path]:
    """Every plot that the results have figures for; the files that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    results = list(results)
    sweeps = [result for result in results if result["kind"] == "sweep"]
    concurrency = [p for sweep in sweeps if sweep["over"] == "concurrency" for p in sweep["points"]]
    tasks = [p for sweep in sweeps if sweep["over"] == "tasks" for p in sweep["points"]]
    rows = [row for result in results if result["kind"] == "compare" for row in result["rows"]]
    plots: list[tuple[str, Callable[[Figure], None]]] = []
    if concurrency:
        plots += [
            ("throughput_over_concurrency", lambda f: _throughput(f, concurrency, "concurrency")),
            ("latency_over_concurrency", lambda f: _latency(f, concurrency)),
            ("step_time", lambda f: _step_time(f, concurrency)),
        ]
    if tasks:
        plots.append(("throughput_over_tasks", lambda f: _throughput(f, tasks, "tasks")))
    if rows:
        plots.append(("compare", lambda f: _compare(f, rows)))
    return [_save(folder / f"{name}.png", plot) for name, plot in plots]


def _save(path: Path, plot: Callable[[Figure], None]) -> Path:
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    plot(figure)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return path


def _throughput(figure: Figure, points: Sequence[Point], over: str) -> None:
    axes = figure.add_subplot()
    _lines(axes, points, over, lambda point: point["result"]["out_tok_s"])
    _limit(axes, points, over, "roofline_tok_s")
    label = "requests at a time" if over == "concurrency" else "tasks, each with its prefix"
    _finish(axes, points, over, label, "output tokens per second")


def _latency(figure: Figure, points: Sequence[Point]) -> None:
    """Two panels; the median as a line, up to p99 as a shade with p90 dotted in it."""
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
        _finish(axes, points, "concurrency", "requests at a time", title)


def _step_time(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.add_subplot()
    _lines(axes, points, "concurrency", lambda point: point["result"]["tpot_ms"]["p50"])
    _limit(axes, points, "concurrency", "roofline_step_ms")
    _finish(axes, points, "concurrency", "requests at a time", "decode step (TPOT p50), ms")


def _compare(figure: Figure, rows: Sequence[dict[str, Any]]) -> None:
    """Ratios as bars, each with its spread and its goal."""
    axes = figure.add_subplot()
    figure.set_figheight(1.5 + 0.4 * len(rows))
    at = range(len(rows))
    ratios = [row["ratio"] for row in rows]
    spread = [
        [max(0.0, row["ratio"] - min(row["ratios"])) for row in rows],
        [max(0.0, max(row["ratios"]) - row["ratio"]) for row in rows],
    ]
    colours = [_COLOURS[0] if row["is_met"] else _COLOURS[1] for row in rows]
    axes.barh(at, ratios, xerr=spread, color=colours, height=0.6, ecolor="#444444", capsize=2)
    for i, row in enumerate(rows):
        goal = row["row"]["goal"]
        axes.plot([goal, goal], [i - 0.4, i + 0.4], color="black", linewidth=2)
        axes.annotate(
            f"{row['ratio']:.2f}",
            (max(*row["ratios"], goal), i),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks([0.5, 1, 2, 4, 8, 16, 32, 64])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min(0.5, *ratios) * 0.9, max(*ratios, 2.0) * 1.6)
    axes.set_yticks(at, [row["title"] for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("throughput, ours / theirs; black: the goal")


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
    """In order of their first points."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point["server"], []).append(point)
    return found
