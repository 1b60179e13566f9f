"""Decode, as a fraction of the rate of a copy on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.gpu.benchmarks.engine import Engine, copy_rate, ms, per_second
from tests.gpu.benchmarks.scale import FULL, Scale


def run(scale: Scale = FULL) -> Iterator[tuple[str, Any]]:
    """Yield times per model and batch size.

    `fraction`: rate at which a step reads its weights, keys and values, relative to the rate of a
    copy (bytes read and written).
    """
    rate = copy_rate(scale)
    yield "copy_bytes_per_s", round(rate)
    for geometry in scale.geometries:
        engine = Engine(geometry, scale)
        for batch_size in scale.batch_sizes:
            with engine.requests([None] * batch_size) as steps:
                before = engine.num_own_tokens
                step_s = engine.seconds_per_step(steps)
                num_own_tokens = (before + engine.num_own_tokens) // 2
            kv_bytes = num_own_tokens * engine.spec.num_bytes_per_token
            num_bytes = engine.num_weight_bytes + kv_bytes
            yield (
                f"{geometry.name}, batch {batch_size}",
                {
                    "step_ms": ms(step_s),
                    "tokens_per_s": per_second(batch_size, step_s),
                    "read_bytes": num_bytes,
                    "fraction": round(num_bytes / step_s / rate, 3),
                    "graphs": engine.graphs is not None,
                },
            )
        del engine
