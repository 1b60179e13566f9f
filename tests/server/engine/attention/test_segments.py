"""Segments of every kind, on every backend, against a softmax over all visible keys of a row.

The third segment of these steps is what cross-attention needs: keys of another length, without
positions and without causality, such as the output of an encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.attention.base import AttentionBackend, Segment, UnsupportedSegment
from server.engine.attention.cpu import CpuBackend
from server.engine.attention.ref import RefBackend
from tests.attention_cases import DEVICE, LAYER, Attention, Case, Tasks

TASKS: Tasks = ((21, [(1, 9), (1, 30)]), (3, [(7, 6)]), (0, [(2, 0)]))
"""Rows 0 and 1 after one prefix, 2 to 8 after another, 9 and 10 after none."""
CASE = Case(page_size=64, unused=1e30, tasks=TASKS)  # a page holds a whole sequence, finite values
NUM_ROWS = 11
SCALING = 0.3


def triton() -> AttentionBackend:
    from server.engine.attention.triton import TritonBackend

    return TritonBackend(min_keys=8)


needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="no Triton")
BACKENDS = [RefBackend, CpuBackend, pytest.param(triton, marks=needs_triton)]
WITH_BIAS = [RefBackend, CpuBackend]
MakeBackend = Callable[[], AttentionBackend]


@dataclass(frozen=True)
class Third:
    """Segments in addition to those of `TASKS`: the rows and the number of keys of each."""

    rows: tuple[tuple[int, int, int], ...]
    has_bias: bool = False
    in_pages: bool = False


THIRDS = {
    "one_sequence": Third(((2, 9, 13),)),
    "all_rows": Third(((0, NUM_ROWS, 40),)),
    "each_sequence": Third(((0, 1, 5), (1, 2, 70), (2, 9, 1), (9, 11, 16))),
    "on_top_of_each_other": Third(((0, 9, 12), (2, 9, 30), (9, 11, 4))),
    "in_pages": Third(((0, 2, 50), (2, 9, 9)), in_pages=True),
}
BIASED = {f"{name}_with_bias": replace(third, has_bias=True) for name, third in THIRDS.items()}


class Step:
    """One layer of a step with additional segments, and what it must return."""

    def __init__(self, third: Third, case: Case = CASE, *, alone: bool = False) -> None:
        self.attention = Attention(case)
        self._generator = torch.Generator().manual_seed(1)
        used = {page for span in self.attention.step.spans for page in span.pages}
        self._free_pages = sorted({*range(case.num_pages)} - used)
        self._in_pages: dict[int, Tensor] = {}  # keys and values, by page
        step = self.attention.step
        shared = [segment for segment in step.segments if not segment.causal]
        own = [] if alone else [segment for segment in step.segments if segment.causal]
        shared += [self._segment(third, *rows) for rows in third.rows]
        segments = [*sorted(shared, key=lambda s: s.begin - s.end), *own]
        spans = [] if alone else step.spans
        self.attention.step = replace(step, spans=spans, segments=segments)

    def change(self, change: Callable[[Segment], Segment]) -> None:
        step = self.attention.step
        self.attention.step = replace(step, segments=[change(s) for s in step.segments])

    def run(self, backend: AttentionBackend) -> Tensor:
        attention = self.attention
        before = attention.pool_before_the_step
        attention.pool_before_the_step = lambda: self._filled(before())  # type: ignore[method-assign]
        return attention.run(backend)[0].cpu()

    def expected(self) -> Tensor:
        """Return the output [T, num_heads, head_dim], row by row, by the definition."""
        attention = self.attention
        pool = self._filled(attention.pool_before_the_step())
        positions = [0] * NUM_ROWS
        for span in attention.step.spans:
            for i in range(span.num_tokens):
                row, slot = span.begin + i, span.num_computed_tokens + i
                new = torch.stack([attention.key[:, row], attention.value[:, row]])
                pool.pages[span.pages[0], LAYER, :, :, slot] = new
                positions[row] = span.num_prefix_tokens + slot
        rows = [self._row(pool, row, positions[row]) for row in range(NUM_ROWS)]
        return torch.stack(rows).cpu()

    def _row(self, pool: Any, row: int, position: int) -> Tensor:
        case, sinks = self.attention.case, self.attention.sinks
        query = self.attention.query[:, row].float()  # [num_heads, head_dim]
        scores, values = [], []
        for segment in self.attention.step.segments:
            if not segment.begin <= row < segment.end:
                continue
            keys = (
                pool.pages[segment.pages[:1], LAYER][0] if segment.kv is None else segment.kv[LAYER]
            )
            for j in range(segment.num_keys):
                if not _sees(segment, position, j, case.window):
                    continue
                key, value = keys[:, :, j].float().repeat_interleave(case.group, dim=1)
                score = (query * key).sum(-1) * SCALING
                if case.softcap is not None:
                    score = case.softcap * torch.tanh(score / case.softcap)
                scores.append(score if segment.bias is None else score + segment.bias[j])
                values.append(value)
        if sinks is not None:
            scores.append(sinks.float())
            values.append(torch.zeros_like(query))
        if not scores:
            return torch.zeros_like(query)
        weights = torch.stack(scores).softmax(0)  # [num_keys, num_heads]
        return (weights[:, :, None] * torch.stack(values)).sum(0)

    def _segment(self, third: Third, begin: int, end: int, num_keys: int) -> Segment:
        case = self.attention.case
        kv = self._random(LAYER + 1, 2, case.num_kv_heads, num_keys, case.head_dim)
        bias = 2 * self._random(num_keys) if third.has_bias else None
        if not third.in_pages:
            return Segment(begin, end, num_keys, None, False, kv, bias=bias)
        page = self._free_pages.pop()
        self._in_pages[page] = kv
        return Segment(begin, end, num_keys, None, False, pages=[page], bias=bias)

    def _filled(self, pool: Any) -> Any:
        for page, kv in self._in_pages.items():
            pool.pages[page, :, :, :, : kv.shape[3]] = kv
        return pool

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(DEVICE)


def _sees(segment: Segment, position: int, j: int, window: int | None) -> bool:
    if segment.first_position is None:
        return True
    distance = position - segment.first_position - j
    return (distance >= 0 or not segment.causal) and (window is None or distance < window)


def check(step: Step, backend: AttentionBackend) -> None:
    torch.testing.assert_close(step.run(backend), step.expected(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("third", THIRDS.values(), ids=THIRDS)
def test_a_third_segment_joins_the_softmax(third: Third, make_backend: MakeBackend) -> None:
    check(Step(third), make_backend())


@pytest.mark.parametrize("make_backend", WITH_BIAS)
@pytest.mark.parametrize("third", BIASED.values(), ids=BIASED)
def test_a_bias_is_added_to_the_scores_of_its_keys(third: Third, make_backend: MakeBackend) -> None:
    check(Step(third), make_backend())


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("options", [{"window": 4}, {"softcap": 2.0}, {"has_sinks": True}])
def test_keys_without_positions_are_within_every_window(
    options: dict[str, Any], make_backend: MakeBackend
) -> None:
    """The other options are here for what they do with three segments."""
    third = THIRDS["each_sequence"] if make_backend is triton else BIASED["each_sequence_with_bias"]
    check(Step(third, replace(CASE, **options)), make_backend())


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("third", ["one_sequence", "on_top_of_each_other", "in_pages"])
def test_a_step_without_own_keys_writes_nothing(third: str, make_backend: MakeBackend) -> None:
    """The cross-attention of a decoder: a prefix and the encoder's output, nothing of its own."""
    step = Step(THIRDS[third], alone=True)
    backend = make_backend()
    check(step, backend)
    before = step.attention.pool_before_the_step()
    assert torch.equal(step.attention.run(backend)[1], before.pages)


@pytest.mark.parametrize("make_backend", WITH_BIAS)
def test_a_bias_can_hide_some_or_all_keys_of_a_segment(make_backend: MakeBackend) -> None:
    step = Step(BIASED["on_top_of_each_other_with_bias"])
    hidden = iter((slice(3, 7), slice(None), slice(1)))

    def hide(segment: Segment) -> Segment:
        if segment.bias is not None:
            segment.bias[next(hidden)] = -torch.inf
        return segment

    step.change(hide)
    check(step, make_backend())


@pytest.mark.parametrize("make_backend", BACKENDS)
def test_a_shared_segment_can_be_causal(make_backend: MakeBackend) -> None:
    """Own keys in a tensor instead of pages: no backend may take them for a prefix."""
    step = Step(Third(()))
    kv = torch.randn(LAYER + 1, 2, CASE.num_kv_heads, 13, CASE.head_dim, device=DEVICE)

    def moved(segment: Segment) -> Segment:
        return segment._replace(kv=kv) if segment.causal and segment.begin == 2 else segment

    step.change(moved)
    check(step, make_backend())


CHANGES: dict[str, Callable[[Segment], Segment]] = {
    "not_causal": lambda s: s._replace(causal=False),
    "shifted": lambda s: (
        s if s.first_position is None else s._replace(first_position=s.first_position + 1)
    ),
    "with_positions": lambda s: s._replace(first_position=s.first_position or 0),
    "without_bias": lambda s: s._replace(bias=None),
    "a_key_less": lambda s: s._replace(
        num_keys=s.num_keys - 1, bias=None if s.bias is None else s.bias[:-1]
    ),
    "a_row_less": lambda s: s._replace(begin=s.begin + 1) if s.end - s.begin > 1 else s,
}


@pytest.mark.parametrize("make_backend", WITH_BIAS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_segment_is_noticed(name: str, make_backend: MakeBackend) -> None:
    """Control of the tests above: each property of a segment changes the output."""
    step = Step(BIASED["each_sequence_with_bias"], replace(CASE, window=4))
    expected = step.expected()
    step.change(CHANGES[name])

    assert (step.run(make_backend()) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("make_backend", BACKENDS)
def test_causal_keys_must_have_positions(make_backend: MakeBackend) -> None:
    step = Step(THIRDS["one_sequence"])
    step.change(lambda segment: segment._replace(first_position=None))

    with pytest.raises(AssertionError):
        step.run(make_backend())


@needs_triton
def test_the_kernels_refuse_a_bias() -> None:
    with pytest.raises(UnsupportedSegment, match="do not add a bias"):
        Step(BIASED["all_rows_with_bias"]).run(triton())


@needs_triton
def test_the_kernels_refuse_an_order_in_which_results_would_collide() -> None:
    step = Step(THIRDS["each_sequence"])
    step.attention.step = replace(step.attention.step, segments=step.attention.step.segments[::-1])

    with pytest.raises(UnsupportedSegment, match="must come first"):
        step.run(triton())
