"""The reference backend: gather and a float32 softmax, sequence by sequence. Slow, for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from server.engine.attention.base import AttentionCall, BatchCapacity, QuerySpan, Step
from server.engine.memory.kv_pool import KvPool


class RefBackend:
    """The oracle of the other backends.

    One mask rule on absolute slots, counted from the start of the prefix:
    abs_k <= abs_q and abs_k > abs_q - window.
    """

    name = "ref"
    graph_safe = False

    def __init__(self) -> None:
        self._pool: KvPool | None = None
        self._step: Step | None = None

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        self._pool = pool

    def plan(self, step: Step) -> None:
        self._step = step

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        assert self._pool is not None
        assert self._step is not None
        out = torch.empty_like(q)  # [num_heads, T, head_dim]
        for span in self._step.spans:
            rows = slice(span.begin, span.end)
            write_own(self._pool, layer, span, torch.stack([k[:, rows], v[:, rows]]))
            keys, values = gather(self._pool, layer, span)
            mask = visible(span, keys.shape[1], call.sliding_window, q.device)
            out[:, rows] = _softmax_attention(q[:, rows], keys, values, mask, call)
        return out.transpose(0, 1)


def write_own(pool: KvPool, layer: int, span: QuerySpan, kv: Tensor) -> None:
    """Write a span's new keys and values [2, num_kv_heads, num_tokens, head_dim] to its pages."""
    for i in range(span.num_tokens):
        page, slot = divmod(span.num_computed_tokens + i, pool.page_size)
        pool.pages[span.pages[page], layer, :, :, slot] = kv[:, :, i]


def gather(pool: KvPool, layer: int, span: QuerySpan) -> tuple[Tensor, Tensor]:
    """Return the keys and values of a span's prefix and own tokens: [num_kv_heads, N, head_dim]."""
    own = pool.layer(layer, span.pages, span.seq_len)
    if span.prefix is None:
        return own[0], own[1]
    k, v = torch.cat([span.prefix.kv[layer], own], dim=2)
    return k, v


def visible(
    span: QuerySpan, num_keys: int, sliding_window: int | None, device: torch.device
) -> Tensor:
    """Return the mask [num_tokens, num_keys], True where a query may see a key."""
    first = span.num_prefix_tokens + span.num_computed_tokens
    abs_q = torch.arange(first, first + span.num_tokens, device=device)[:, None]
    abs_k = torch.arange(num_keys, device=device)[None]
    mask = abs_k <= abs_q
    return mask if sliding_window is None else mask & (abs_k > abs_q - sliding_window)


def _softmax_attention(
    q: Tensor,  # [num_heads, num_tokens, head_dim]
    k: Tensor,  # [num_kv_heads, num_keys, head_dim]
    v: Tensor,  # [num_kv_heads, num_keys, head_dim]
    mask: Tensor,  # [num_tokens, num_keys]
    call: AttentionCall,
) -> Tensor:
    num_groups = q.shape[0] // k.shape[0]
    k, v = (t.float().repeat_interleave(num_groups, dim=0) for t in (k, v))
    scores = q.float() @ k.transpose(1, 2) * call.scaling
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if call.sinks is not None:  # a key without a value, visible to every query
        sink = call.sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return (weights @ v).to(q.dtype)
