"""The reference backend: gather and a float32 softmax, sequence by sequence. Slow, for tests."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from server.engine.attention.base import AttentionCall, BatchCapacity, QuerySpan, Segment, Step
from server.engine.memory.kv_pool import KvPool


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive rows that attend to the same segments."""

    rows: slice
    positions: Tensor  # [num_rows]; positions of the rows' tokens
    segments: list[Segment]

    def visible(self, sliding_window: int | None) -> Tensor:
        """Return the mask [num_rows, num_keys], True where a row may see a key."""
        masks = [_visible(self.positions[:, None], s, sliding_window) for s in self.segments]
        return masks[0] if len(masks) == 1 else torch.cat(masks, dim=1)

    def bias(self) -> Tensor | None:
        """Return what is added to the scores of each key [num_keys]; None if nothing is."""
        if all(segment.bias is None for segment in self.segments):
            return None
        nothing = self.positions.new_zeros(1, dtype=torch.float32)
        return torch.cat(
            [nothing.expand(s.num_keys) if s.bias is None else s.bias for s in self.segments]
        )


class RefBackend:
    """The oracle of the other backends. It computes segments of every kind.

    One mask rule on positions, counted from the start of the prefix: causal segments show keys with
    position_k <= position_q, and a window those with position_k > position_q - window.
    """

    name = "ref"
    graph_safe = False

    def __init__(self) -> None:
        self._pool: KvPool | None = None
        self._step: Step | None = None
        self._runs: list[_Run] | None = None

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        self._pool = pool

    def plan(self, step: Step) -> None:
        self._step = step
        self._runs = None  # the CPU backend plans every step, and attends here to few

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        assert self._pool is not None
        assert self._step is not None
        if self._runs is None:
            self._runs = _runs(self._step, q.device)
        for span in self._step.spans:
            rows = slice(span.begin, span.end)
            write_own(self._pool, layer, span, torch.stack([k[:, rows], v[:, rows]]))
        out = torch.zeros_like(q)  # [num_heads, T, head_dim]
        for run in self._runs:
            kv = gather(self._pool, layer, run.segments)
            mask = run.visible(call.sliding_window)
            out[:, run.rows] = _softmax_attention(q[:, run.rows], kv, mask, run.bias(), call)
        return out.transpose(0, 1)


def write_own(pool: KvPool, layer: int, span: QuerySpan, kv: Tensor) -> None:
    """Write a span's new keys and values [2, num_kv_heads, num_tokens, head_dim] to its pages."""
    for i in range(span.num_tokens):
        page, slot = divmod(span.num_computed_tokens + i, pool.page_size)
        pool.pages[span.pages[page], layer, :, :, slot] = kv[:, :, i]


def gather(pool: KvPool, layer: int, segments: list[Segment]) -> Tensor:
    """Return keys and values of segments, one after another: [2, num_kv_heads, N, head_dim]."""
    parts = [
        pool.layer(layer, segment.pages, segment.num_keys)
        if segment.kv is None
        else segment.kv[layer, :, :, : segment.num_keys]
        for segment in segments
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _runs(step: Step, device: torch.device) -> list[_Run]:
    """Cut the rows wherever a segment begins or ends. Rows without a segment are left out."""
    cuts = sorted({0, *(row for s in step.segments for row in (s.begin, s.end))})
    index = {row: i for i, row in enumerate(cuts)}
    visible: list[list[Segment]] = [[] for _ in cuts]
    for segment in step.segments:
        for i in range(index[segment.begin], index[segment.end]):
            visible[i].append(segment)
    positions = torch.zeros(cuts[-1], dtype=torch.long)
    for span in step.spans:
        positions[span.begin : span.end] = span.first_position + torch.arange(span.num_tokens)
    positions = positions.to(device)
    return [
        _Run(slice(begin, end), positions[begin:end], segments)
        for (begin, end), segments in zip(pairwise(cuts), visible, strict=False)
        if segments
    ]


def _visible(position_q: Tensor, segment: Segment, sliding_window: int | None) -> Tensor:
    mask = position_q.new_ones(len(position_q), segment.num_keys, dtype=torch.bool)
    if segment.first_position is None:
        assert not segment.causal
        return mask
    first = segment.first_position
    position_k = torch.arange(first, first + segment.num_keys, device=mask.device)[None]
    if segment.causal:
        mask &= position_k <= position_q
    if sliding_window is not None:
        mask &= position_k > position_q - sliding_window
    return mask


def _softmax_attention(
    q: Tensor,  # [num_heads, num_tokens, head_dim]
    kv: Tensor,  # [2, num_kv_heads, num_keys, head_dim]
    mask: Tensor,  # [num_tokens, num_keys]
    bias: Tensor | None,  # [num_keys]
    call: AttentionCall,
) -> Tensor:
    num_groups = q.shape[0] // kv.shape[1]
    k, v = (t.float().repeat_interleave(num_groups, dim=0) for t in kv)
    scores = q.float() @ k.transpose(1, 2) * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, -torch.inf)
    if call.sinks is not None:  # a key without a value, visible to every query
        sink = call.sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    out: Tensor = weights @ v
    return out.to(q.dtype)
