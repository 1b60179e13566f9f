"""Long prefixes: reading them once per task against reading them once per request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from prefix_store.digest import Digest
from tests.gpu.benchmarks.engine import Engine, ms, per_second
from tests.gpu.benchmarks.scale import FULL, Scale

GOAL = 2.5


def run(scale: Scale = FULL) -> Iterator[tuple[str, Any]]:
    """Yield times of both variants. They use the same tensors; with one digest per request, the
    engine cannot share them."""
    yield "goal", GOAL
    yield "tasks", scale.num_tasks
    num_requests = max(scale.batch_sizes)
    for geometry in scale.geometries:
        engine = Engine(
            geometry, replace(scale, num_prompt_tokens=min(32, scale.num_prompt_tokens))
        )
        by_task: list[Digest | None] = []
        by_request: list[Digest | None] = []
        prefixes = [engine.make_prefix(scale.num_prefix_tokens) for _ in range(scale.num_tasks)]
        for i in range(num_requests):
            task = i % scale.num_tasks
            for digests, name in ((by_task, f"task {task}"), (by_request, f"request {i}")):
                digest = Digest.of(name.encode())
                digests.append(digest)
                engine.prefixes.resident[digest] = prefixes[task]
        times_s = {}
        for name, digests in (("once a task", by_task), ("once a request", by_request)):
            with engine.requests(digests) as steps:
                times_s[name] = engine.seconds_per_step(steps)
        once, often = times_s["once a task"], times_s["once a request"]
        yield (
            f"{geometry.name}, {num_requests} requests x {scale.num_prefix_tokens}",
            {
                "step_ms": {name: ms(step_s) for name, step_s in times_s.items()},
                "tokens_per_s": {n: per_second(num_requests, s) for n, s in times_s.items()},
                "gain": round(often / once, 2),
            },
        )
        del engine, prefixes
