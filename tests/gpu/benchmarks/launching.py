"""Time that graphs save, and that launching one step ahead saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.gpu.benchmarks.engine import Engine, ms, seconds
from tests.gpu.benchmarks.scale import FULL, Scale


def run(scale: Scale = FULL) -> Iterator[tuple[str, Any]]:
    """Yield times of a decode step. "graph" means eager if device or model cannot use graphs."""
    for geometry in scale.geometries:
        engine = Engine(geometry, scale)
        graphs = engine.graphs
        capture_s = seconds(graphs.capture_all, engine.device) if graphs is not None else None
        for batch_size in scale.batch_sizes:
            times_ms = {}
            for uses_graphs in (True, False):
                engine.use_graphs(graphs if uses_graphs else None)
                for overlap in (True, False):
                    with engine.requests([None] * batch_size, overlap=overlap) as steps:
                        name = f"{'graph' if uses_graphs else 'eager'}, "
                        name += "one ahead" if overlap else "in turn"
                        times_ms[name] = ms(engine.seconds_per_step(steps))
            yield (
                f"{geometry.name}, batch {batch_size}",
                {
                    "capture_s": capture_s,
                    "step_ms": times_ms,
                },
            )
        del engine, graphs
