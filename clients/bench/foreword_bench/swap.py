"""Hot swaps under load: how soon a new version is live, and whether running streams stall.

At an interval a task under load gets another version: one uploaded and activated in one call, or
one of two existing ones. After the 200, requests for the task are sent one after another until one
names that version; it is "visible" when the head of that response arrives. In addition, no request
of the load that was sent after the 200 may name another version.

A stream stalls at a swap if the gaps between its tokens are longer during the call, or within
`_AFTER_S` of its end, than at other times. Prompts of other requests cause long gaps too, so the
longest gap is also measured in windows of the same length halfway between swaps. The stall is the
difference of the two medians, divided by the usual gap: the median time per output token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

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
"""Max requests until a version must be visible."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap, in times of `time.perf_counter`."""

    model: str
    version: int
    sent_s: float
    done_s: float
    """When the 200 arrived."""
    visible_s: float
    first_token_s: float
    """When the first token from the new version arrived."""
    num_stale: int
    """Answers by another version to requests sent after the 200."""


By = Literal["upload", "activate"]


class Swapper:
    """Background task that swaps the version of a target's first task at an interval: it uploads a
    version each time, or activates one of two in turn."""

    def __init__(
        self, target: Target, every_s: float, *, by: By = "upload", api_key: str | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        with httpx.Client(base_url=target.url, headers=headers) as client:
            if not (target.num_tasks and tasks.has_registry(client)):
                raise BenchError("swaps need --tasks, and a Foreword server to swap them on")
            info = client.get("/info").raise_for_status().json()
            if by == "activate":
                self._versions = tasks.two_versions(
                    client, info, target.models[0], target.num_prefix_tokens
                )
        self._by = by
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
        swapped = await http.exchange(self._request(http, model))
        if swapped.status not in (200, 201):
            raise BenchError(f"swapping {model}: HTTP {swapped.status}: {swapped.body()[:200]!r}")
        said = json.loads(swapped.body())
        version: int = said["version" if self._by == "upload" else "active_version"]
        done_s = swapped.reads[-1][0]
        # A seed of its own, so that no probe has a prompt of the load.
        probe = Workload(num_requests=1, num_new_tokens=1, seed=-1_000_000 - len(self.swaps))
        for num_stale in range(_NUM_PROBES):
            answer = await http.exchange(self._target.request(http, probe, 0))
            if int(answer.headers.get("x-task-version", 0)) == version:
                return Swap(
                    model,
                    version,
                    swapped.sent_s,
                    done_s,
                    answer.head_s,
                    answer.reads[-1][0],
                    num_stale,
                )
        raise BenchError(f"{model}: version {version} did not answer in {_NUM_PROBES} requests")

    def _request(self, http: Http, model: str) -> bytes:
        if self._by == "upload":
            return http.request(
                "PUT", f"/tasks/{model}/prefix", self._new_prefix(), tasks.MEDIA_TYPE
            )
        version = self._versions[len(self.swaps) % 2]
        body = json.dumps({"version": version}).encode()
        return http.request("POST", f"/tasks/{model}/activate", body, "application/json")

    def _new_prefix(self) -> bytes:
        """Change the last values, so that the digest is new and in no cache."""
        self._prefix[-64:] = self._rng.standard_normal(16, np.float32).tobytes()
        return bytes(self._prefix)


def summary(swaps: Sequence[Swap], answers: Sequence[Answer]) -> dict[str, Any]:
    """Compute how long swaps took, and how much streams stalled. Raises `BenchError`."""
    if not swaps:
        raise BenchError("no swap finished in time: send more requests")
    good = [answer for answer in answers if answer.error is None]
    near_s = longest_gaps_s([(swap.sent_s, swap.done_s + _AFTER_S) for swap in swaps], good)
    between_s = longest_gaps_s(list(_windows_between(swaps)), good)
    if not between_s:
        raise BenchError("the swaps leave no time between them to compare with: make them rarer")
    usual_s = float(np.median([answer.tpot_s for answer in good]))
    return {
        "swaps": len(swaps),
        "call_ms": _with_max([swap.done_s - swap.sent_s for swap in swaps]),
        "visible_after_ms": _with_max([swap.visible_s - swap.done_s for swap in swaps]),
        "visible_goal_ms": VISIBLE_GOAL_MS,
        "first_token_after_ms": _with_max([swap.first_token_s - swap.done_s for swap in swaps]),
        "stale_answers": sum(swap.num_stale for swap in swaps) + num_stale(swaps, good),
        "usual_gap_ms": round(usual_s * 1e3, 3),
        "longest_gap_near_a_swap_ms": _with_max(near_s),
        "longest_gap_between_swaps_ms": _with_max(between_s),
        "stall": round(float(np.median(near_s) - np.median(between_s)) / max(usual_s, 1e-6), 2),
    }


def _with_max(seconds: Sequence[float]) -> dict[str, float | None]:
    return percentiles_ms(seconds) | {"max": round(max(seconds) * 1e3, 3)}


def num_stale(swaps: Sequence[Swap], answers: Iterable[Answer]) -> int:
    """Count answers of the load by a version that was not active during their request."""
    return sum(_is_stale(answer, swaps) for answer in answers)


def _is_stale(answer: Answer, swaps: Sequence[Swap]) -> bool:
    """Whether an answer is by an outdated version. Before the first 200 any version may answer."""
    of_task = [swap for swap in swaps if swap.model == answer.model]
    done = [swap for swap in of_task if swap.done_s < answer.sent_s]
    if not done:
        return False
    under_way = [s for s in of_task if s.done_s >= answer.sent_s and s.sent_s < answer.head_s]
    return answer.version not in {swap.version for swap in (done[-1], *under_way)}


def longest_gaps_s(
    windows: Sequence[tuple[float, float]], answers: Iterable[Answer]
) -> list[float]:
    """Return for each window (begin, end) the longest gap between two tokens of any stream that
    overlaps with it; 0 if there is none."""
    longest_s = [0.0] * len(windows)
    for answer in answers:
        for a, b in pairwise(answer.token_s):
            for i, (begin_s, end_s) in enumerate(windows):
                if a < end_s and b > begin_s:
                    longest_s[i] = max(longest_s[i], b - a)
    return longest_s


def _windows_between(swaps: Sequence[Swap]) -> Iterator[tuple[float, float]]:
    """Yield windows halfway between swaps, as long as the previous swap's window, if they fit."""
    for swap, following in pairwise(swaps):
        begin_s, length_s = swap.done_s + _AFTER_S, swap.done_s + _AFTER_S - swap.sent_s
        spare_s = following.sent_s - begin_s - length_s
        if spare_s > 0:
            yield begin_s + spare_s / 2, begin_s + spare_s / 2 + length_s
