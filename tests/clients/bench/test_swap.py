"""Swaps under load: what they take is seen, and a server that swaps badly is found out."""

from __future__ import annotations

from typing import Any

import pytest

from foreword_bench import load, swap, target
from foreword_bench.errors import BenchError
from foreword_bench.stream import Answer
from foreword_bench.swap import Swap, Swapper
from foreword_bench.workload import Workload
from tests.clients.bench.small_server import SmallServer

GOOD = Swap("x", 2, sent_s=10.0, done_s=10.2, visible_s=10.21, first_token_s=10.25, num_stale=0)


async def swapped(small: SmallServer) -> dict[str, Any]:
    where = target.find(small.url, num_tasks=2, num_prefix_tokens=8)
    swapper = Swapper(where, 0.4)
    workload = Workload(num_requests=20, concurrency=4, num_new_tokens=60)
    run = await load.run(where, workload, beside=swapper)
    assert [answer.error for answer in run.answers] == [None] * 20
    return swap.summary(swapper.swaps, run.answers)


async def test_a_swap_is_visible_at_once_and_no_stream_stalls(small: SmallServer) -> None:
    figures = await swapped(small)

    assert figures["swaps"] >= 2
    assert figures["stale_answers"] == 0
    assert figures["visible_after_ms"]["max"] < 150
    assert len(small.versions["bench-8-0"]) >= 1 + figures["swaps"]
    assert len(small.versions["bench-8-1"]) == 1


async def test_a_server_that_swaps_late_is_found_out(small: SmallServer) -> None:
    small.lag_s = 0.15

    figures = await swapped(small)

    assert figures["visible_after_ms"]["p50"] >= 140
    assert figures["stale_answers"] > 0


async def test_a_server_whose_streams_wait_for_uploads_is_found_out(small: SmallServer) -> None:
    small.stall_s = 0.2

    figures = await swapped(small)

    assert figures["longest_gap_near_a_swap_ms"]["max"] >= 190
    assert figures["stall"] > 5


def test_answers_by_an_old_version_are_stale_only_if_asked_for_after_the_200() -> None:
    def answer(sent_s: float, version: int | None, model: str = "x") -> Answer:
        return Answer(model, due_s=sent_s, sent_s=sent_s, version=version)

    fresh = [answer(10.1, 1), answer(10.3, 2), answer(10.3, 3), answer(10.3, 1, model="y")]
    stale = [answer(10.21, 1), answer(99.0, None)]

    assert swap.num_stale([GOOD], fresh) == 0
    assert swap.num_stale([GOOD], [*fresh, *stale]) == 2


def test_a_gap_is_near_a_swap_if_they_overlap() -> None:
    def answer(*token_s: float) -> Answer:
        return Answer("any", due_s=0.0, sent_s=0.0, token_s=token_s)

    near = answer(9.9, 10.05, 10.25, 10.35)  # gaps of 0.15, 0.2 and 0.1
    away = answer(1.0, 1.5, 1.75)

    near_s, away_s = swap.stalls_s([GOOD], [near, away])

    assert near_s == pytest.approx([0.2])
    assert away_s == 0.5


def test_no_swaps_are_no_measurement(small: SmallServer) -> None:
    with pytest.raises(BenchError, match="no swap"):
        swap.summary([], [])
    small.is_foreword = False
    with pytest.raises(BenchError, match="Foreword server"):
        Swapper(target.find(small.url, num_tasks=1, num_prefix_tokens=4), 0.1)
