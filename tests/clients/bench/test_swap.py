"""Swaps under load: what they take is seen, and a server that swaps badly is found out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from foreword_bench import load, swap, target
from foreword_bench.errors import BenchError
from foreword_bench.stream import Answer
from foreword_bench.swap import Swap, Swapper
from foreword_bench.workload import Workload
from tests.clients.bench.small_server import SmallServer

GOOD = Swap("x", 2, sent_s=10.0, done_s=10.2, visible_s=10.21, first_token_s=10.25, num_stale=0)


async def swapped(small: SmallServer, by: swap.By = "upload") -> dict[str, Any]:
    where = target.find(small.url, num_tasks=2, num_prefix_tokens=8)
    swapper = Swapper(where, 0.5, by=by)
    workload = Workload(num_requests=20, concurrency=4, num_new_tokens=60)
    run = await load.run(where, workload, background=swapper)
    assert [answer.error for answer in run.answers] == [None] * 20
    return swap.summary(swapper.swaps, run.answers)


async def test_a_swap_is_visible_at_once_and_no_stream_stalls(small: SmallServer) -> None:
    figures = await swapped(small)

    assert figures["swaps"] >= 2
    assert figures["stale_answers"] == 0
    assert figures["visible_after_ms"]["max"] < 500
    assert small.num_versions["bench-8-0"] >= 1 + figures["swaps"]
    assert small.num_versions["bench-8-1"] == 1


async def test_versions_that_are_there_can_take_turns(small: SmallServer) -> None:
    figures = await swapped(small, by="activate")

    assert figures["swaps"] >= 2
    assert figures["stale_answers"] == 0
    assert small.num_versions["bench-8-0"] == 2
    active = [number for _, number in small.swaps["bench-8-0"]]
    assert active[:5] == [1, 2, 1, 2, 1][: len(active)]


async def test_a_server_that_swaps_late_is_found_out(small: SmallServer) -> None:
    small.lag_s = 0.5

    figures = await swapped(small)

    assert figures["visible_after_ms"]["p50"] >= 400
    assert figures["stale_answers"] > 0


async def test_a_server_whose_streams_wait_for_uploads_is_found_out(small: SmallServer) -> None:
    small.stall_s = 0.2

    figures = await swapped(small)

    assert figures["longest_gap_near_a_swap_ms"]["max"] >= 190
    assert figures["stall"] > 5


def test_answers_by_the_wrong_version_are_stale_only_if_asked_for_after_the_200() -> None:
    def answer(sent_s: float, version: int | None, model: str = "x") -> Answer:
        head_s = sent_s + 0.05
        return Answer(model, due_s=sent_s, sent_s=sent_s, head_s=head_s, version=version)

    back = replace(GOOD, version=1, sent_s=20.0, done_s=20.2)
    fresh = [answer(10.1, 1), answer(10.3, 2), answer(10.3, 1, model="y")]
    fresh += [answer(19.96, 1), answer(20.1, 2), answer(20.1, 1), answer(20.3, 1)]
    stale = [answer(10.21, 1), answer(19.9, 1), answer(20.21, 2), answer(99.0, None)]

    assert swap.num_stale([GOOD, back], fresh) == 0
    assert swap.num_stale([GOOD, back], [*fresh, *stale]) == 4


def test_gaps_count_where_they_overlap_with_a_window() -> None:
    def answer(*token_s: float) -> Answer:
        return Answer("any", due_s=0.0, sent_s=0.0, token_s=token_s)

    near = answer(9.9, 10.05, 10.25, 10.35)  # gaps of 0.15, 0.2 and 0.1
    away = answer(1.0, 1.5, 1.75)

    windows = [(10.0, 10.3), (1.6, 1.7), (50.0, 60.0)]
    assert swap.longest_gaps_s(windows, [near, away]) == pytest.approx([0.2, 0.25, 0.0])


def test_no_swaps_are_no_measurement(small: SmallServer) -> None:
    with pytest.raises(BenchError, match="no swap"):
        swap.summary([], [])
    small.is_foreword = False
    with pytest.raises(BenchError, match="Foreword server"):
        Swapper(target.find(small.url, num_tasks=1, num_prefix_tokens=4), 0.1)
