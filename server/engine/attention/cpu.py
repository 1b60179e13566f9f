"""The CPU backend: a few large calls of torch's flash attention, merged by log-sum-exp.

Calls of one layer:

- one per segment that sequences share (a prefix), for all its rows;
- one masked call over the own KV of all decode rows, read from their slabs (pages);
- per prefill chunk, one causal call, and one over the sequence's earlier tokens if there are any.

torch's CPU kernel returns the log-sum-exp of the scores, so partial results over disjoint keys can
be merged; those of all prefixes are merged in one operation. The query heads that share a KV head
are folded into the query length: with one query row, `enable_gqa` is eight times slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.attention.base import AttentionCall, BatchCapacity, QuerySpan, Segment, Step
from server.engine.attention.ref import RefBackend, gather
from server.engine.memory.kv_pool import KvPool

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_NOTHING = -1e38
"""Log-sum-exp over no keys. Not -inf, because the difference of two would be NaN."""


@dataclass(frozen=True, slots=True)
class _Decode:
    """The spans of one token (decode rows): their rows, slabs, and visible slots."""

    rows: Tensor | None  # [num_rows]; rows in the batch, None if the batch has no others
    pages: Tensor  # [num_rows]
    slots: Tensor  # [num_rows]; where the new key and value go
    slabs: slice | Tensor
    """Pages that the call reads: a slice of the pool (a view) if the rows' pages lie close
    together, otherwise exactly the rows' pages (a copy)."""
    queries: Tensor  # [num_slabs]; batch row of the query that attends to each slab
    answers: Tensor  # [num_rows]; index of each row's slab
    num_keys: int
    mask: Tensor  # [num_slabs, 1, 1, num_keys]; 0 or -inf


@dataclass(frozen=True, slots=True)
class _Partial:
    """Attention over some of the keys: the output, and the log-sum-exp of the scores."""

    out: Tensor  # [T, num_kv_heads, num_groups, head_dim]
    lse: Tensor  # [T, num_kv_heads, num_groups], float32

    @classmethod
    def over_nothing(cls, q: Tensor) -> _Partial:
        """Return the partial result over no keys, which a merge ignores."""
        return cls(torch.zeros_like(q), q.new_full(q.shape[:-1], _NOTHING, dtype=torch.float32))

    def write(self, rows: slice, out: Tensor, lse: Tensor) -> None:
        """Store a call's result for `rows`. `out` and `lse` have heads first, rows second."""
        self.out[rows] = out.transpose(0, 1)
        self.lse[rows] = lse.transpose(0, 1)

    def merge(self, other: _Partial) -> Tensor:
        """Return attention over both sets of keys, in float32.

        The weight of a part is its share of the sum of exponentials: a sigmoid of the difference
        between the two log-sum-exps.
        """
        weight = torch.sigmoid(other.lse - self.lse).unsqueeze(-1)
        return torch.lerp(self.out.float(), other.out.float(), weight)

    def join(self, other: _Partial) -> _Partial:
        """Return the partial result over both sets of keys, to be merged with a third."""
        return _Partial(self.merge(other).to(self.out.dtype), torch.logaddexp(self.lse, other.lse))


class CpuBackend:
    """Attention by torch on a CPU. A page must hold a whole sequence (a slab)."""

    name = "cpu"
    graph_safe = False

    def __init__(self) -> None:
        self._ref = RefBackend()
        self._pool: KvPool | None = None
        self._step: Step | None = None
        self._decode: _Decode | None = None
        self._prefills: list[QuerySpan] = []
        self._shared: list[list[Segment]] | None = []
        """Segments beside the sequences' own keys; those of an inner list share no rows. None if
        the reference backend has to compute the step."""
        self._max_context = 0

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        self._pool = pool
        self._ref.allocate(pool)

    def plan(self, step: Step) -> None:
        assert self._pool is not None
        self._step = step
        self._ref.plan(step)
        decodes = [span for span in step.spans if span.num_tokens == 1]
        self._prefills = [span for span in step.spans if span.num_tokens > 1]
        self._decode = None
        if decodes:
            self._decode = _plan_decode(decodes, self._pool, alone=not self._prefills)
        beside_own = step.segments_beside_own()
        self._shared = None if beside_own is None else _without_overlap(beside_own)
        self._max_context = max((s.num_prefix_tokens + s.seq_len for s in step.spans), default=0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if self._shared is None or not self._is_plain(call):
            return self._ref.attend(layer, q, k, v, call)
        assert self._pool is not None
        kv = torch.stack([k, v]).permute(2, 0, 1, 3)  # [T, 2, num_kv_heads, head_dim]
        q = _fold(q, k.shape[0])
        own = self._attend_own(self._pool.pages[:, layer], q, kv, call.scaling)
        if not self._shared:
            return own.out.flatten(1, 2)
        *others, last = (self._attend_shared(s, layer, q, call.scaling) for s in self._shared)
        for partial in others:
            own = own.join(partial)
        return own.merge(last).to(q.dtype).flatten(1, 2)

    def _is_plain(self, call: AttentionCall) -> bool:
        """Return whether torch's kernel computes this call: it has no window, soft cap or sinks."""
        window = call.sliding_window
        is_whole = window is None or self._max_context <= window
        return is_whole and call.softcap is None and call.sinks is None

    def _attend_own(self, layer: Tensor, q: Tensor, kv: Tensor, scaling: float) -> _Partial:
        """Write the new keys and values, then attend to each sequence's own tokens."""
        if self._decode is not None and not self._prefills:
            return _attend_decode(self._decode, layer, q, kv, scaling)
        own = _Partial.over_nothing(q)
        if (decode := self._decode) is not None:
            assert decode.rows is not None
            partial = _attend_decode(decode, layer, q, kv[decode.rows], scaling)
            own.out[decode.rows], own.lse[decode.rows] = partial.out, partial.lse
        for span in self._prefills:
            _attend_prefill(span, layer, q, kv, own, scaling)
        return own

    def _attend_shared(
        self, segments: list[Segment], layer: int, q: Tensor, scaling: float
    ) -> _Partial:
        """Attend to segments that share no rows."""
        assert self._pool is not None
        partial = _Partial.over_nothing(q)
        for segment in segments:
            rows = slice(segment.begin, segment.end)
            keys, values = gather(self._pool, layer, [segment])
            partial.write(rows, *_attend_all(q[rows], keys, values, scaling, segment.bias))
        return partial


def _without_overlap(segments: list[Segment]) -> list[list[Segment]]:
    """Distribute segments over lists, so that those of a list share no rows."""
    lists: list[list[Segment]] = []
    for segment in segments:
        if segment.bias is not None and segment.bias.max() == -torch.inf:
            continue  # no key is visible, for which torch returns a log-sum-exp of 0
        free = (each for each in lists if each[-1].end <= segment.begin)
        if (found := next(free, None)) is not None:
            found.append(segment)
        else:
            lists.append([segment])
    return lists


def _fold(query: Tensor, num_kv_heads: int) -> Tensor:
    """Reshape [num_heads, T, head_dim] to [T, num_kv_heads, num_groups, head_dim]."""
    _, num_tokens, head_dim = query.shape
    grouped = query.reshape(num_kv_heads, -1, num_tokens, head_dim)
    return grouped.permute(2, 0, 1, 3).contiguous()


def _plan_decode(spans: list[QuerySpan], pool: KvPool, *, alone: bool) -> _Decode:
    pages = torch.tensor([span.pages[0] for span in spans])
    rows = torch.tensor([span.begin for span in spans])
    lengths = torch.tensor([span.num_computed_tokens + 1 for span in spans])
    low, high = int(pages.min()), int(pages.max()) + 1
    # A view of all pages from the first to the last avoids a copy. It is worth it if at least half
    # of them belong to a row.
    if high - low <= 2 * len(spans):
        slabs: slice | Tensor = slice(low, high)
        answers = pages - low
        queries = rows.new_zeros(high - low).index_put((answers,), rows)
        seen = rows.new_ones(high - low)  # a slab without a row attends to one slot: finite scores
        seen = seen.index_put((answers,), lengths)
    else:
        slabs, queries, seen = pages, rows, lengths
        answers = torch.arange(len(spans))
    num_keys = int(lengths.max())
    hidden = torch.arange(num_keys)[None] >= seen[:, None]
    mask = torch.zeros(hidden.shape, dtype=pool.pages.dtype).masked_fill(hidden, -torch.inf)
    return _Decode(
        rows=None if alone else rows,
        pages=pages,
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
    q: Tensor,  # [T, num_kv_heads, num_groups, head_dim]
    kv: Tensor,  # [num_rows, 2, num_kv_heads, head_dim]
    scaling: float,
) -> _Partial:
    """Write and attend for the decode rows only: [num_rows, num_kv_heads, num_groups, ...]."""
    layer[decode.pages, :, :, decode.slots] = kv
    slabs = layer[decode.slabs, :, :, : decode.num_keys]
    out, lse = _flash(
        q[decode.queries], slabs[:, 0], slabs[:, 1], attn_mask=decode.mask, scale=scaling
    )
    return _Partial(out[decode.answers], lse[decode.answers])


def _attend_prefill(
    span: QuerySpan,
    layer: Tensor,  # [num_pages, 2, num_kv_heads, page_size, head_dim]
    q: Tensor,  # [T, num_kv_heads, num_groups, head_dim]
    kv: Tensor,  # [T, 2, num_kv_heads, head_dim]
    own: _Partial,  # the span's rows are written
    scaling: float,
) -> None:
    """Write and attend for one prefill chunk: causal over its tokens, full over earlier ones."""
    rows = slice(span.begin, span.end)
    slab = layer[span.pages[0]]  # [2, num_kv_heads, page_size, head_dim]
    new = slab[:, :, span.num_computed_tokens : span.seq_len]
    new.copy_(kv[rows].permute(1, 2, 0, 3))
    num_groups = q.shape[2]
    heads_q = q[rows].flatten(1, 2).transpose(0, 1)  # [num_heads, num_tokens, head_dim]
    k, v = (t.repeat_interleave(num_groups, dim=0) for t in new)
    out, lse = _flash(heads_q[None], k[None], v[None], is_causal=True, scale=scaling)
    own.out[rows] = out[0].transpose(0, 1).unflatten(1, q.shape[1:3])
    own.lse[rows] = lse[0].transpose(0, 1).unflatten(1, q.shape[1:3])
    if span.num_computed_tokens > 0:
        past = _Partial.over_nothing(q[rows])
        keys, values = slab[:, :, : span.num_computed_tokens]
        past.write(slice(None), *_attend_all(q[rows], keys, values, scaling))
        new_keys = _Partial(own.out[rows], own.lse[rows])
        own.out[rows] = new_keys.merge(past).to(q.dtype)
        own.lse[rows] = torch.logaddexp(own.lse[rows], past.lse)


def _attend_all(
    q: Tensor,  # [num_rows, num_kv_heads, num_groups, head_dim]
    keys: Tensor,  # [num_kv_heads, num_keys, head_dim]
    values: Tensor,  # [num_kv_heads, num_keys, head_dim]
    scaling: float,
    bias: Tensor | None = None,  # [num_keys]
) -> tuple[Tensor, Tensor]:
    """Attend without a mask: to a shared segment, or to the tokens before a chunk.

    Returns the output [num_kv_heads, num_rows, num_groups, head_dim] and the log-sum-exp
    [num_kv_heads, num_rows, num_groups].
    """
    num_rows, _, num_groups, _ = q.shape
    heads_q = q.transpose(0, 1).flatten(1, 2)  # [num_kv_heads, num_rows * num_groups, head_dim]
    mask = None if bias is None else bias[None, None, None]
    out, lse = _flash(heads_q[None], keys[None], values[None], attn_mask=mask, scale=scaling)
    return out[0].unflatten(1, (num_rows, num_groups)), lse[0].unflatten(1, (num_rows, num_groups))
