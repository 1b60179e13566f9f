"""Figures of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from foreword_bench.load import Run
from foreword_bench.stream import Answer

PERCENTILES = (50, 90, 99)


def percentiles_ms(seconds: Iterable[float]) -> dict[str, float | None]:
    """Return p50, p90 and p99 in milliseconds, interpolated linearly."""
    values = np.fromiter(seconds, float)
    if not values.size:
        return {f"p{p}": None for p in PERCENTILES}
    found = np.percentile(values, PERCENTILES) * 1e3
    return {f"p{p}": round(float(at), 3) for p, at in zip(PERCENTILES, found, strict=True)}


def gaps_s(answers: Iterable[Answer]) -> list[float]:
    """Return the times between successive events with tokens of the same stream."""
    return [b - a for answer in answers for a, b in pairwise(answer.token_s)]


def summary(run: Run) -> dict[str, Any]:
    """Compute throughput, from the first request sent to the last token received, and latencies.

    Only complete answers count. Failures are counted by reason.
    """
    good = run.good
    num_tokens = sum(answer.num_tokens for answer in good)
    span_s = _span_s(good)
    errors = Counter(answer.error for answer in run.answers if answer.error is not None)
    return {
        "requests": len(run.answers),
        "errors": dict(errors.most_common()),
        "out_tok_s": round(num_tokens / span_s, 1) if good else 0.0,
        "req_s": round(len(good) / span_s, 3) if good else 0.0,
        "duration_s": round(span_s, 3),
        "ttft_ms": percentiles_ms(answer.ttft_s for answer in good),
        "tpot_ms": percentiles_ms(answer.tpot_s for answer in good),
        "gap_ms": percentiles_ms(gaps_s(good)),
        "e2e_ms": percentiles_ms(answer.total_s for answer in good),
        "prompt_tokens": sum(answer.num_prompt_tokens or 0 for answer in good),
        "completion_tokens": num_tokens,
        "client_cpu_us_per_token": round(run.client_cpu_s / max(1, num_tokens) * 1e6, 1),
    }


def _span_s(answers: Sequence[Answer]) -> float:
    """Return the duration of the run. It begins when the first request was due."""
    if not answers:
        return 0.0
    first_s = min(answer.due_s for answer in answers)
    return max(answer.token_s[-1] for answer in answers) - first_s
