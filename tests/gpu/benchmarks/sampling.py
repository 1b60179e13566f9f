"""Time of sampling, by sampling parameters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch

from server.engine.params import SamplingParams
from server.engine.sampling.sampler import SampleRow, sample
from tests.gpu.benchmarks.engine import ms, seconds
from tests.gpu.benchmarks.scale import FULL, Scale

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.8},
    "top-k": {"temperature": 0.8, "top_k": 40},
    "top-p": {"temperature": 0.8, "top_p": 0.9},
}


def run(scale: Scale = FULL) -> Iterator[tuple[str, Any]]:
    device, vocab_size = torch.device(scale.device), scale.geometries[-1].vocab_size
    for num_rows in scale.batch_sizes:
        logits = 3 * torch.randn(num_rows, vocab_size, device=device)
        for name, kind in KINDS.items():
            rows = [
                SampleRow(SamplingParams(max_tokens=1, seed=i, **kind), i) for i in range(num_rows)
            ]
            times_s = [seconds(partial(sample, logits, rows), device) for _ in range(12)]
            yield f"{num_rows} rows of {vocab_size}, {name}", {"ms": ms(median(times_s[2:]))}
