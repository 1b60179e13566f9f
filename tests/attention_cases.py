"""Attention of one layer over random tensors, for any backend, and the cases to test."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import (
    AttentionBackend,
    AttentionCall,
    BatchCapacity,
    QuerySpan,
    Segment,
    Step,
)
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYER = 1

Tasks = tuple[tuple[int, list[tuple[int, int]]], ...]
MIXED: Tasks = ((0, [(1, 9)]), (21, [(9, 6), (1, 0)]), (3, [(1, 17)]))


@dataclass(frozen=True)
class Case:
    """Geometry, options and batch of a test. `tasks`: pairs of a prefix length and chunks, which
    are pairs of new tokens and own tokens before them."""

    group: int = 2
    num_kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 4
    dtype: str = "float32"
    window: int | None = None
    softcap: float | None = None
    has_sinks: bool = False
    min_keys: int = 8
    unused: float = torch.nan
    """What slots of the pool hold that no sequence has written."""
    tasks: Tasks = MIXED

    @property
    def num_pages(self) -> int:
        """A few pages more than the chunks need."""
        chunks = [chunk for _, chunks in self.tasks for chunk in chunks]
        return 3 + sum(-(-sum(chunk) // self.page_size) for chunk in chunks)

    @property
    def capacity(self) -> BatchCapacity:
        return BatchCapacity(
            self.group * self.num_kv_heads, max_num_rows=512, max_num_seqs=64, max_seq_len=2048
        )


class Attention:
    """Inputs of one layer in one step, identical on every device."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._generator = torch.Generator().manual_seed(0)
        spans, segments, end = [], [], 0
        free = torch.randperm(case.num_pages, generator=self._generator).tolist()
        for length, chunks in case.tasks:
            begin, prefix = end, self._prefix(length)
            for num_tokens, start in chunks:
                pages = [free.pop() for _ in range(-(-(num_tokens + start) // case.page_size))]
                spans.append(QuerySpan(len(spans), end, num_tokens, start, pages, length))
                end += num_tokens
            if prefix is not None:
                segments.append(Segment.of_prefix(begin, end, prefix))
        self.num_rows = end
        segments += map(Segment.own, spans)
        self.step = Step(*[torch.empty(0)] * 3, spans, segments)  # type: ignore[arg-type]
        num_heads = case.group * case.num_kv_heads
        self.query, self.key, self.value = (
            self._random(end, heads, case.head_dim).transpose(0, 1)
            for heads in (num_heads, case.num_kv_heads, case.num_kv_heads)
        )
        self.sinks = self._random(num_heads) if case.has_sinks else None
        self._kv = self._random(*self.pool().pages.shape)

    def _random(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self._generator)
        return values.to(DEVICE, getattr(torch, self.case.dtype))

    def _prefix(self, length: int) -> ResidentPrefix | None:
        if length == 0:
            return None
        kv = self._random(LAYER + 1, 2, self.case.num_kv_heads, length, self.case.head_dim)
        return ResidentPrefix(kv, length, length)

    def pool(self) -> KvPool:
        case = self.case
        spec = BaseModelSpec(
            "x", "sha256:" + "0" * 64, LAYER + 1, case.num_kv_heads, case.head_dim, 64, case.dtype
        )
        return KvPool(spec, num_pages=case.num_pages, page_size=case.page_size, device=DEVICE)

    def pool_before_the_step(self) -> KvPool:
        """Return a pool that holds the earlier tokens' KV, and `unused` in all other slots."""
        pool = self.pool()
        pool.pages.fill_(self.case.unused)
        for span in self.step.spans:
            for i in range(span.num_computed_tokens):
                page, slot = divmod(i, self.case.page_size)
                at = span.pages[page], slice(None), slice(None), slice(None), slot
                pool.pages[at] = self._kv[at]
        return pool

    def run(self, backend: AttentionBackend, num_rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the output [T, num_heads, head_dim] in float32, and the pool after the step."""
        pool = self.pool_before_the_step()
        backend.allocate(pool, self.case.capacity)
        backend.plan(self.step)
        return attend(self, backend, num_rows or self.num_rows), pool.pages


def attend(attention: Attention, backend: AttentionBackend, num_rows: int) -> Tensor:
    """Run one layer with `num_rows` rows; those past the step hold a constant.

    Returns [num_rows, num_heads, head_dim] in float32.
    """
    q, k, v = (
        torch.cat([x, x.new_full((x.shape[0], num_rows - x.shape[1], x.shape[2]), 7.0)], dim=1)
        for x in (attention.query, attention.key, attention.value)
    )
    call = AttentionCall(0.3, attention.case.window, attention.case.softcap, attention.sinks)
    return backend.attend(LAYER, q, k, v, call).float()


CASES = {
    "mixed": Case(),
    "multi_head": Case(group=1),
    "three_queries_a_key": Case(group=3, head_dim=24),
    "eight_queries_a_key": Case(group=8, num_kv_heads=1),
    "more_queries_than_a_low_tile": Case(group=20, num_kv_heads=1, tasks=((5, [(2, 3)]),)),
    "window": Case(window=8),
    "window_of_one": Case(window=1, tasks=((5, [(3, 3)]),)),
    "soft_cap": Case(softcap=2.0),
    "sinks": Case(has_sinks=True),
    "everything": Case(window=8, softcap=2.0, has_sinks=True, group=4, num_kv_heads=1),
    "half": Case(dtype="float16", tasks=((9, [(1, 9)]),)),
    "pages_of_one": Case(page_size=1, tasks=((5, [(2, 11)]),)),
    "large_pages": Case(page_size=32, tasks=((5, [(1, 31), (1, 32)]),)),
    "no_prefix": Case(tasks=((0, [(6, 0), (1, 3)]),)),
    "one_long_item_a_tile": Case(min_keys=256, tasks=((200, [(1, 9), (1, 90)]),)),
    "many_parts_a_row": Case(group=1, num_kv_heads=1, tasks=((200, [(1, 9)]),)),
    "high_tiles": Case(group=4, num_kv_heads=1, tasks=((9, [(35, 3)]),)),
}
