"""Sweeps of a load over concurrency or over the number of tasks, alternating between servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from foreword_bench import load, report, statistics, target
from foreword_bench.compare import measured_roofline
from foreword_bench.peers import Peers
from foreword_bench.roofline import Roofline, Shape
from foreword_bench.workload import Workload

Over = Literal["concurrency", "tasks"]
DEFAULT: dict[Over, tuple[int, ...]] = {
    "concurrency": (1, 2, 4, 8, 16, 32, 64),
    "tasks": (1, 4, 16, 64, 256),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The points of a sweep: `values` replace the concurrency or the number of tasks."""

    over: Over
    values: tuple[int, ...]
    concurrency: int
    num_tasks: int
    num_prefix_tokens: int
    prompt_lengths: tuple[int, ...]
    num_new_tokens: int
    num_waves: int

    def shape(self, value: int) -> Shape:
        is_concurrency = self.over == "concurrency"
        return Shape(
            num_requests=value if is_concurrency else self.concurrency,
            num_tasks=self.num_tasks if is_concurrency else value,
            num_prefix_tokens=self.num_prefix_tokens,
            num_prompt_tokens=sum(self.prompt_lengths) / len(self.prompt_lengths),
            num_new_tokens=self.num_new_tokens,
        )

    def workload(self, value: int) -> Workload:
        """Make a workload of whole waves in which every task occurs at least once."""
        shape = self.shape(value)
        num_waves = max(self.num_waves, -(-shape.num_tasks // shape.num_requests))
        return Workload(
            num_requests=num_waves * shape.num_requests,
            concurrency=shape.num_requests,
            prompt_lengths=self.prompt_lengths,
            num_new_tokens=self.num_new_tokens,
            seed=value,
        )


def run(peers: Peers, points: Points) -> Iterator[dict[str, Any]]:
    """Yield the result so far after every point."""
    roofline = measured_roofline(peers)
    result: dict[str, Any] = {
        "kind": "sweep",
        "machine": report.machine(),
        "model": peers.model.name,
        "over": points.over,
        "workload": asdict(points),
        "rates": None if roofline is None else asdict(roofline.rates),
        "points": [],
    }
    servers = [peers.foreword(), *([peers.peer()] if peers.choice.has_peer else [])]
    for value in points.values:
        shape = points.shape(value)
        for server in servers:
            where = target.find(
                server.url, num_tasks=shape.num_tasks, num_prefix_tokens=shape.num_prefix_tokens
            )
            figures = statistics.summary(asyncio.run(load.run(where, points.workload(value))))
            report.note(f"{server.name}, {points.over} {value}: {figures['out_tok_s']:,.1f} tok/s")
            point = {"server": server.name, points.over: value, "result": figures}
            result["points"].append(point | _limits(roofline, shape))
        yield result


def _limits(roofline: Roofline | None, shape: Shape) -> dict[str, float]:
    if roofline is None:
        return {}
    return {
        "roofline_tok_s": round(roofline.tok_s(shape), 1),
        "roofline_step_ms": round(roofline.mean_step_s(shape) * 1e3, 3),
    }
