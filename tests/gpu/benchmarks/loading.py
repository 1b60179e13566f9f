"""Time of steps while a prefix is copied to the device, and without a copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from server.engine.memory.transfer import SideCopy
from tests.gpu.benchmarks.engine import Engine, ms
from tests.gpu.benchmarks.scale import FULL, Scale


def run(scale: Scale = FULL) -> Iterator[tuple[str, Any]]:
    """Yield times of single steps of the largest batch, with and without a concurrent copy."""
    for geometry in scale.geometries:
        engine = Engine(geometry, scale)
        prefix = engine.make_prefix(scale.num_prefix_tokens).kv.cpu()
        copy: Callable[[Tensor], Tensor] = Tensor.clone
        if scale.device == "cuda":
            copy = SideCopy(scale.device)
        with engine.requests([None] * max(scale.batch_sizes)) as steps:
            engine.seconds_per_step(steps)
            alone = [_time(steps.step) for _ in range(scale.num_steps)]
            with ThreadPoolExecutor(1) as copier:
                copied = copier.submit(_time, partial(copy, prefix))
                during: list[float] = []
                while not copied.done() and len(during) < scale.num_steps:
                    during.append(_time(steps.step))
        yield (
            geometry.name,
            {
                "prefix_bytes": prefix.numel() * prefix.itemsize,
                "copy_ms": ms(copied.result()),
                "steps_during_copy": len(during),
                "step_ms": {"alone": _spread(alone), "during": _spread(during)},
            },
        )
        del engine


def _time(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def _spread(times_s: list[float]) -> dict[str, float]:
    times = torch.tensor(times_s or [0.0])
    return {"median": ms(float(times.median())), "max": ms(float(times.max()))}
