"""The CPU backend: torch's flash attention, which returns the log-sum-exp, over few large calls.

A task's prefix is one call for all its rows; own KV of all decode rows is one masked call over
their slabs; a prefill chunk is one causal call and, if it is not the first, one over its past.
Partial results are merged by log-sum-exp. The query heads that share a KV head are folded into the
query length: with one query row and `enable_gqa` torch is eight times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from server.engine.attention.base import Span, Step
from server.engine.attention.ref import RefBackend
from server.engine.kv_pool import KvPool

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True, slots=True)
class _Decode:
    """All spans of one token: their rows, their slabs, and which slots they may see."""

    rows: Tensor  # [num_rows]
    pages: Tensor  # [num_rows]
    slots: Tensor  # [num_rows]; where the new key and value go
    slabs: slice | Tensor
    """Pages that the call reads: a dense run of the pool, a view, or else the rows' own, a copy."""
    queries: Tensor | None  # [num_slabs]; row of each slab in `rows`, None if they are the same
    answers: Tensor | None  # [num_rows]; the inverse of `queries`
    num_keys: int
    mask: Tensor  # [num_slabs, 1, 1, num_keys]; 0 or -inf


class CpuBackend:
    """Needs pages that hold a whole sequence (`page_size` >= its length)."""

    def __init__(self) -> None:
        self._ref = RefBackend()
        self._pool: KvPool | None = None
        self._step: Step | None = None
        self._decode: _Decode | None = None
        self._prefills: list[Span] = []
        self._max_context = 0

    def allocate(self, pool: KvPool) -> None:
        self._pool = pool
        self._ref.allocate(pool)

    def plan(self, step: Step) -> None:
        assert self._pool is not None
        self._step = step
        self._ref.plan(step)
        decodes = [span for span in step.spans if span.num_tokens == 1]
        self._prefills = [span for span in step.spans if span.num_tokens > 1]
        self._decode = _plan_decode(decodes, self._pool) if decodes else None
        self._max_context = max(s.num_prefix_tokens + s.start + s.num_tokens for s in step.spans)

    def attend(
        self,
        module: Any,
        query: Tensor,  # [1, num_heads, T, head_dim]
        key: Tensor,  # [1, num_kv_heads, T, head_dim]
        value: Tensor,  # [1, num_kv_heads, T, head_dim]
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        windowed = sliding_window is not None and self._max_context > sliding_window
        if windowed or softcap is not None or s_aux is not None:
            return self._ref.attend(
                module, query, key, value, attention_mask, scaling=scaling,
                sliding_window=sliding_window, softcap=softcap, s_aux=s_aux,
            )  # fmt: skip
        assert self._pool is not None
        assert self._step is not None
        q = _fold(query[0], key.shape[1])
        kv = torch.stack([key[0], value[0]]).permute(2, 0, 1, 3)  # [T, 2, num_kv_heads, head_dim]
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        layer = self._pool.pages[:, module.layer_idx]
        if self._decode is not None:
            _attend_decode(self._decode, layer, q, kv, out, lse, scaling)
        for span in self._prefills:
            _attend_prefill(span, layer, q, kv, out, lse, scaling)
        for group in self._step.groups:
            rows = slice(group.begin, group.end)
            prefix = group.prefix.kv[module.layer_idx]
            _merge(
                out[:, rows], lse[:, rows], *_attend_all(q[:, rows], prefix[0], prefix[1], scaling)
            )
        return out.permute(1, 0, 2, 3).flatten(1, 2)[None], None


def _fold(query: Tensor, num_kv_heads: int) -> Tensor:
    """[num_heads, T, head_dim] -> [num_kv_heads, T, num_groups, head_dim]."""
    _, num_tokens, head_dim = query.shape
    grouped = query.reshape(num_kv_heads, -1, num_tokens, head_dim)
    return grouped.transpose(1, 2).contiguous()


def _plan_decode(spans: list[Span], pool: KvPool) -> _Decode:
    pages = [span.pages[0] for span in spans]
    lengths = torch.tensor([span.start + 1 for span in spans])
    num_keys = int(lengths.max())
    low, high = min(pages), max(pages) + 1
    queries = answers = None
    slabs: slice | Tensor
    if high - low <= 2 * len(pages):
        slabs = slice(low, high)
        seen = torch.ones(
            high - low, dtype=torch.long
        )  # a slab without a row reads one finite slot
        answers = torch.tensor(pages) - low
        seen[answers] = lengths
        queries = torch.zeros(high - low, dtype=torch.long)
        queries[answers] = torch.arange(len(pages))
    else:
        slabs, seen = torch.tensor(pages), lengths
    hidden = torch.arange(num_keys)[None] >= seen[:, None]
    mask = torch.zeros(hidden.shape, dtype=pool.pages.dtype).masked_fill(hidden, -torch.inf)
    return _Decode(
        rows=torch.tensor([span.begin for span in spans]),
        pages=torch.tensor(pages),
        slots=lengths - 1,
        slabs=slabs,
        queries=queries,
        answers=answers,
        num_keys=num_keys,
        mask=mask[:, None, None],
    )


def _attend_decode(
    decode: _Decode,
    layer: Tensor,  # [num_pages, 2, num_kv_heads, page_size, head_dim]
    q: Tensor,  # [num_kv_heads, T, num_groups, head_dim]
    kv: Tensor,  # [T, 2, num_kv_heads, head_dim]
    out: Tensor,  # like q; the rows of this call are written
    lse: Tensor,  # [num_kv_heads, T, num_groups]; likewise
    scaling: float | None,
) -> None:
    layer[decode.pages, :, :, decode.slots] = kv[decode.rows]
    slabs = layer[decode.slabs, :, :, : decode.num_keys]
    queries = decode.rows if decode.queries is None else decode.rows[decode.queries]
    rows_q = q[:, queries].transpose(0, 1)  # [num_slabs, num_kv_heads, num_groups, head_dim]
    o, s = _flash(rows_q, slabs[:, 0], slabs[:, 1], attn_mask=decode.mask, scale=scaling)
    if decode.answers is not None:
        o, s = o[decode.answers], s[decode.answers]
    out[:, decode.rows] = o.transpose(0, 1)
    lse[:, decode.rows] = s.transpose(0, 1)


def _attend_prefill(
    span: Span,
    layer: Tensor,  # [num_pages, 2, num_kv_heads, page_size, head_dim]
    q: Tensor,  # [num_kv_heads, T, num_groups, head_dim]
    kv: Tensor,  # [T, 2, num_kv_heads, head_dim]
    out: Tensor,  # like q; the span's rows are written
    lse: Tensor,  # [num_kv_heads, T, num_groups]; likewise
    scaling: float | None,
) -> None:
    rows = slice(span.begin, span.end)
    slab = layer[span.pages[0]]  # [2, num_kv_heads, page_size, head_dim]
    slab[:, :, span.start : span.start + span.num_tokens] = kv[rows].permute(1, 2, 0, 3)
    new = slab[:, :, span.start : span.start + span.num_tokens]
    num_groups = q.shape[2]
    heads_q = q[:, rows].transpose(1, 2).flatten(0, 1)  # [num_heads, num_tokens, head_dim]
    k, v = (t.repeat_interleave(num_groups, dim=0) for t in new)
    o, s = _flash(heads_q[None], k[None], v[None], is_causal=True, scale=scaling)
    out[:, rows] = o[0].unflatten(0, (-1, num_groups)).transpose(1, 2)
    lse[:, rows] = s[0].unflatten(0, (-1, num_groups)).transpose(1, 2)
    if span.start > 0:
        past = slab[:, :, : span.start]
        _merge(out[:, rows], lse[:, rows], *_attend_all(q[:, rows], past[0], past[1], scaling))


def _attend_all(
    q: Tensor,  # [num_kv_heads, num_tokens, num_groups, head_dim]
    k: Tensor,  # [num_kv_heads, num_keys, head_dim]
    v: Tensor,  # [num_kv_heads, num_keys, head_dim]
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Every query sees every key: a prefix, or the past of a chunk. Output and log-sum-exp."""
    o, s = _flash(q.flatten(1, 2)[None], k[None], v[None], scale=scaling)
    return o[0].unflatten(1, q.shape[1:3]), s[0].unflatten(1, q.shape[1:3])


def _merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Fold a partial result over other keys into `out` and `lse`, in place.

    The weight of one side is the share of its exponentials, a sigmoid of the difference.
    """
    weight = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    out.copy_(torch.lerp(out.float(), other_out.float(), weight))
    lse.copy_(torch.logaddexp(lse, other_lse))
