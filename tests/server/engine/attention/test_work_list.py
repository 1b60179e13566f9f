"""Every row meets each visible key once, and every partial result has its own slot."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.attention.base import QuerySpan, Segment, Step, UnsupportedSegment
from server.engine.attention.work_list import NO_POSITION, Tiling, WorkList, work_list
from server.engine.memory.prefix import ResidentPrefix

PAGE_SIZE = 4
Chunks = list[tuple[int, int]]


def tiling(**changes: int) -> Tiling:
    sizes = {"low_rows": 3, "high_rows": 8, "num_programs": 2, "min_keys": 8, "max_parts": 10_000}
    return Tiling(page_size=PAGE_SIZE, **(sizes | changes))


def step_of(tasks: list[tuple[int, Chunks]], num_encoded: int = 0) -> Step:
    """Build a step from tasks (prefix length, chunks), with chunks (new tokens, earlier tokens).

    Every second sequence also attends to `num_encoded` keys without positions.
    """
    spans: list[QuerySpan] = []
    segments: list[Segment] = []
    end = num_pages = 0
    for length, chunks in tasks:
        begin = end
        prefix = ResidentPrefix(torch.empty(1, 2, 1, length, 1), length, length)
        for num_tokens, start in chunks:
            pages = list(range(num_pages, num_pages - (-(start + num_tokens) // PAGE_SIZE)))
            num_pages += len(pages)
            spans.append(QuerySpan(len(spans), end, num_tokens, start, pages, length))
            end += num_tokens
        if length:
            segments.append(Segment.of_prefix(begin, end, prefix))
    if num_encoded:
        kv = torch.empty(1, 2, 1, num_encoded, 1)
        segments += (Segment(s.begin, s.end, num_encoded, None, False, kv) for s in spans[::2])
    nothing = torch.empty(0)
    return Step(nothing, nothing, nothing, spans, [*segments, *map(Segment.own, spans)])


def keys_seen(work: WorkList) -> Counter[tuple[int, int]]:
    """Count the pairs (row, position of the key) that the kernel would visit."""
    seen: Counter[tuple[int, int]] = Counter()
    for _, _, _, first_row, num_rows, begin, end, first_position, causal, _ in work.items:
        for row in range(first_row, first_row + num_rows):
            positions = range(first_position + begin, first_position + end)
            seen.update((row, p) for p in positions if p <= work.row_positions[row] or not causal)
    return seen


chunks = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=4)
tasks = st.lists(st.tuples(st.integers(0, 50), chunks), min_size=1, max_size=3)


@given(tasks, st.sampled_from([100, 10_000]), st.sampled_from([0, 1, 30]))
@settings(max_examples=60, deadline=None)
def test_every_row_meets_every_key_once(
    tasks: list[tuple[int, Chunks]], spare: int, num_encoded: int
) -> None:
    step = step_of(tasks, num_encoded)
    num_rows = step.spans[-1].end

    work = work_list(step, tiling(max_parts=3 * num_rows + spare), lambda kv: 0)

    expected = Counter(
        (span.begin + i, position)
        for span in step.spans
        for i in range(span.num_tokens)
        for position in range(span.first_position + i + 1)
    )
    expected.update(
        (row, NO_POSITION + i)
        for span in step.spans[::2]
        for row in range(span.begin, span.end)
        for i in range(num_encoded)
    )
    assert keys_seen(work) == expected
    slots = [
        int(work.row_parts[row]) + ordinal
        for *_, first_row, rows, _, _, _, _, ordinal in work.items.tolist()
        for row in range(first_row, first_row + rows)
    ]
    assert sorted(slots) == list(range(work.row_parts[-1]))
    assert work.row_parts[-1] <= 3 * num_rows + spare


@given(tasks)
@settings(max_examples=20, deadline=None)
def test_new_keys_go_to_the_slots_of_the_page_table(tasks: list[tuple[int, Chunks]]) -> None:
    step = step_of(tasks)

    work = work_list(step, tiling(), lambda kv: 0)

    assert work.row_slots.tolist() == [
        span.pages[own // PAGE_SIZE] * PAGE_SIZE + own % PAGE_SIZE
        for span in step.spans
        for own in range(span.num_computed_tokens, span.seq_len)
    ]


def test_a_prefix_is_read_once_for_all_its_rows() -> None:
    work = work_list(step_of([(20, [(1, 5)] * 8)]), tiling(num_programs=4), lambda kv: 77)

    prefix_items = work.items[work.items[:, 1] > 0]
    assert prefix_items[:, [0, 1, 4]].tolist() == [[77, 20, 8]] * 3
    assert prefix_items[:, [5, 6]].tolist() == [[0, 8], [8, 16], [16, 20]]


def test_a_tile_skips_keys_that_its_last_row_may_not_see() -> None:
    work = work_list(step_of([(0, [(20, 7)])]), tiling(min_keys=64), lambda kv: 0)

    assert work.items[:, [3, 4, 5, 6]].tolist() == [[0, 8, 0, 15], [8, 8, 0, 23], [16, 4, 0, 27]]


def test_a_long_prefix_is_split_into_few_items() -> None:
    work = work_list(step_of([(5000, [(1, 5)])]), tiling(), lambda kv: 0)

    assert 4 <= len(work.items) <= 12


def test_partial_results_fit_into_their_buffer() -> None:
    step = step_of([(5000, [(8, 5)])])

    assert work_list(step, tiling(), lambda kv: 0).row_parts[-1] > 16
    work = work_list(step, tiling(max_parts=16), lambda kv: 0)
    assert np.diff(work.row_parts).tolist() == [2] * 8


def test_more_segments_than_partial_results_are_refused() -> None:
    with pytest.raises(UnsupportedSegment, match="too many segments"):
        work_list(step_of([(5, [(8, 5)])]), tiling(max_parts=15), lambda kv: 0)
