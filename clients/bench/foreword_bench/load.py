"""Closed-loop load on `/v1/completions`: a new request starts when one of the running ends."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from foreword_bench.workload import Workload, random_token_ids


class LoadError(Exception):
    """The server did not do what was asked, so there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, in turn over `models` and over cached text prefixes."""

    url: str
    models: Sequence[str]
    num_text_prefixes: int = 0
    num_prefix_tokens: int = 0

    def prefix(self, request: int) -> list[int]:
        if not self.num_text_prefixes:
            return []
        return random_token_ids(
            self.num_prefix_tokens, f"prefix/{request % self.num_text_prefixes}"
        )

    @property
    def num_kinds(self) -> int:
        """Requests after which every task was asked once."""
        return max(len(self.models), self.num_text_prefixes)


@dataclass(frozen=True, slots=True)
class Timing:
    first_token_s: float
    total_s: float


async def run(target: Target, workload: Workload) -> dict[str, float]:
    """Ask every task once, which is not counted, then measure."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=target.url, timeout=600, limits=limits) as client:
        for request in range(target.num_kinds):
            await _complete(client, target, workload, request)
        timings: list[Timing] = []
        requests = iter(range(workload.num_requests))

        async def keep_asking() -> None:
            for request in requests:
                timings.append(await _complete(client, target, workload, request))

        started_s = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(workload.concurrency)))
        return _summary(workload, timings, time.perf_counter() - started_s)


async def _complete(
    client: httpx.AsyncClient, target: Target, workload: Workload, request: int
) -> Timing:
    body = {
        "model": target.models[request % len(target.models)],
        "prompt": target.prefix(request) + workload.prompt(request),
        "max_tokens": workload.num_new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started_s = time.perf_counter()
    first_token_s, num_tokens = 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.is_error:
            raise LoadError(f"{response.status_code}: {(await response.aread())[:500]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("choices") and not first_token_s:
                first_token_s = time.perf_counter() - started_s
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    if num_tokens != workload.num_new_tokens:
        raise LoadError(f"asked for {workload.num_new_tokens} tokens, got {num_tokens}")
    return Timing(first_token_s, time.perf_counter() - started_s)


def _summary(workload: Workload, timings: list[Timing], wall_s: float) -> dict[str, float]:
    first = sorted(timing.first_token_s for timing in timings)
    between = [
        (timing.total_s - timing.first_token_s) / max(1, workload.num_new_tokens - 1)
        for timing in timings
    ]
    num_tokens = workload.num_requests * workload.num_new_tokens
    return {
        "concurrency": workload.concurrency,
        "requests": workload.num_requests,
        "out_tok_s": round(num_tokens / wall_s, 1),
        "ttft_p50_ms": round(statistics.median(first) * 1e3, 1),
        "ttft_p99_ms": round(first[int(len(first) * 0.99)] * 1e3, 1),
        "tpot_p50_ms": round(statistics.median(between) * 1e3, 2),
    }
