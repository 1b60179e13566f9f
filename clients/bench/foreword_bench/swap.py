"""Hot swaps under load: how soon a new version answers, and whether running streams notice.

Every so often a task under load gets a new version, uploaded and made active in one call. When its
200 is there, requests for the task are sent one after the other until one names the new version;
"visible" is when that answer's head arrives. Besides, no request of the load that was sent after
the 200 may name an older version. A stream notices a swap if its tokens come further apart while
the upload is under way or within `_AFTER_S` of its end than they usually do: than the median over
streams of the time per output token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
import numpy as np

from foreword_bench import tasks
from foreword_bench.errors import BenchError
from foreword_bench.statistics import percentiles_ms
from foreword_bench.stream import Answer
from foreword_bench.target import Target
from foreword_bench.wire import Http, WireError
from foreword_bench.workload import Workload

VISIBLE_GOAL_MS = 50.0
_AFTER_S = 0.1
_NUM_PROBES = 500
"""Sent at most until a version must be visible."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap, in times of `time.perf_counter`."""

    model: str
    version: int
    sent_s: float
    done_s: float
    """When the 200 was there."""
    visible_s: float
    first_token_s: float
    """Of the first answer by the new version."""
    num_stale: int
    """Answers by an older version to requests sent after the 200."""


class Swapper:
    """Swaps the first of a target's tasks again and again, while a load runs."""

    def __init__(self, target: Target, every_s: float, *, api_key: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with httpx.Client(base_url=target.url, headers=headers) as client:
            if not (target.num_tasks and tasks.has_registry(client)):
                raise BenchError("swaps need --tasks, and a Foreword server to swap them on")
            info = client.get("/info").raise_for_status().json()
        self._target = target
        self._every_s = every_s
        self._prefix = bytearray(tasks.random_prefix(info, target.num_prefix_tokens, seed=0))
        self._rng = np.random.default_rng(time.time_ns())
        self.swaps: list[Swap] = []

    async def __call__(self, http: Http) -> None:
        due_s = time.perf_counter()
        while True:
            due_s += self._every_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            try:
                self.swaps.append(await self._swap(http))
            except WireError as exc:
                raise BenchError(f"swapping {self._target.models[0]}: {exc}") from None

    async def _swap(self, http: Http) -> Swap:
        model = self._target.models[0]
        upload = http.request("PUT", f"/tasks/{model}/prefix", self._new_prefix(), tasks.MEDIA_TYPE)
        uploaded = await http.exchange(upload)
        if uploaded.status not in (200, 201):
            raise BenchError(f"swapping {model}: HTTP {uploaded.status}: {uploaded.body()[:200]!r}")
        version: int = json.loads(uploaded.body())["version"]
        done_s = uploaded.reads[-1][0]
        # Another workload than the load's, so that no probe's prompt is one of its prompts.
        probe = Workload(num_requests=1, num_new_tokens=1, seed=-1_000_000 - len(self.swaps))
        for num_stale in range(_NUM_PROBES):
            answer = await http.exchange(self._target.request(http, probe, 0))
            if int(answer.headers.get("x-task-version", 0)) >= version:
                return Swap(
                    model,
                    version,
                    uploaded.sent_s,
                    done_s,
                    answer.head_s,
                    answer.reads[-1][0],
                    num_stale,
                )
        raise BenchError(f"{model}: version {version} did not answer in {_NUM_PROBES} requests")

    def _new_prefix(self) -> bytes:
        """Other values at the end make another digest, which no cache knows."""
        self._prefix[-64:] = self._rng.standard_normal(16, np.float32).tobytes()
        return bytes(self._prefix)


def summary(swaps: Sequence[Swap], answers: Sequence[Answer]) -> dict[str, Any]:
    """What the swaps took, and what the streams beside them noticed. Raises `BenchError`."""
    if not swaps:
        raise BenchError("no swap was done in time: ask for more requests")
    good = [answer for answer in answers if answer.error is None]
    near_s, away_s = stalls_s(swaps, good)
    usual_s = float(np.median([answer.tpot_s for answer in good]))
    return {
        "swaps": len(swaps),
        "upload_ms": _with_max([swap.done_s - swap.sent_s for swap in swaps]),
        "visible_after_ms": _with_max([swap.visible_s - swap.done_s for swap in swaps]),
        "visible_goal_ms": VISIBLE_GOAL_MS,
        "first_token_after_ms": _with_max([swap.first_token_s - swap.done_s for swap in swaps]),
        "stale_answers": sum(swap.num_stale for swap in swaps) + num_stale(swaps, good),
        "usual_gap_ms": round(usual_s * 1e3, 3),
        "longest_gap_near_a_swap_ms": _with_max(near_s),
        "longest_gap_away_ms": round(away_s * 1e3, 3),
        "stall": round(float(np.median(near_s)) / max(usual_s, 1e-6), 2),
    }


def _with_max(seconds: Sequence[float]) -> dict[str, float | None]:
    return percentiles_ms(seconds) | {"max": round(max(seconds) * 1e3, 3)}


def num_stale(swaps: Iterable[Swap], answers: Iterable[Answer]) -> int:
    """Answers of the load by an older version than the one active when they were asked for."""
    swaps = list(swaps)
    return sum(
        any(
            answer.model == swap.model
            and answer.sent_s > swap.done_s
            and (answer.version or 0) < swap.version
            for swap in swaps
        )
        for answer in answers
    )


def stalls_s(swaps: Sequence[Swap], answers: Iterable[Answer]) -> tuple[list[float], float]:
    """The longest gap between two tokens of a stream: near each swap, and away from all of them.

    0 where no stream ran.
    """
    near_s = [0.0] * len(swaps)
    away_s = 0.0
    for answer in answers:
        for a, b in pairwise(answer.token_s):
            is_near = False
            for i, swap in enumerate(swaps):
                if a < swap.done_s + _AFTER_S and b > swap.sent_s:
                    is_near = True
                    near_s[i] = max(near_s[i], b - a)
            if not is_near:
                away_s = max(away_s, b - a)
    return near_s, away_s
