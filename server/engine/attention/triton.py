"""The CUDA backend: a fixed grid of Triton kernels works off a list that lies on the device.

An item of the list is (some rows, a range of one segment of keys and values). A task's prefix is
read once for all its rows. Partial results are kept in float32 and merged by log-sum-exp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.attention import triton_kernels as kernels
from server.engine.attention.base import Bounds, Step
from server.engine.attention.work_list import ITEM_SIZE, Tiling, work_list
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix

_ALIGNMENT = 16
"""Bytes that the device loads at once; the allocators align tensors to more."""
_KEY_BLOCK_BYTES = 16384
"""Of the keys that a program holds at once."""
_PROGRAMS_PER_CORE = 2
_PARTS_PER_BLOCK = 16


class TritonBackend:
    """`min_keys` is the smallest range of keys that is worth a program of its own."""

    name = "triton"
    graph_safe = True

    def __init__(self, *, min_keys: int = 256) -> None:
        self._min_keys = min_keys

    def allocate(self, pool: KvPool, bounds: Bounds | None = None) -> None:
        assert bounds is not None
        self._pages = pool.pages
        _, _, _, self._num_kv_heads, page_size, self._head_dim = pool.pages.shape
        self._group = bounds.num_heads // self._num_kv_heads
        self._block_d = max(16, _power_of_two(self._head_dim))
        block_bytes = self._block_d * pool.pages.itemsize
        self._block_n = min(64, max(16, _KEY_BLOCK_BYTES // block_bytes))
        # Of a decode row, and of many rows: heights in rows times query heads of a KV head.
        self._low = max(16, _power_of_two(self._group))
        self._high = max(self._low, 128 if block_bytes <= 256 else 64)
        device = pool.pages.device
        num_programs = -(-_PROGRAMS_PER_CORE * _num_cores(device) // self._num_kv_heads)
        high_rows = self._high // self._group
        max_parts = 2 * bounds.num_rows + 4 * num_programs * high_rows
        self._tiling = Tiling(
            page_size=page_size,
            low_rows=self._low // self._group,
            high_rows=high_rows,
            num_programs=num_programs,
            min_keys=self._min_keys,
            max_parts=max_parts,
        )
        shape = (max_parts, bounds.num_heads, self._head_dim)
        self._part_out = torch.empty(shape, dtype=torch.float32, device=device)
        self._part_lse = torch.empty(shape[:2], dtype=torch.float32, device=device)
        num_rows = self._num_rows = bounds.num_rows
        max_pages = bounds.num_spans * -(-bounds.num_tokens // page_size)
        self._page_list = _Staged(max_pages, torch.int32, device)
        sizes = [3, num_rows, num_rows, num_rows + 1, max_parts * ITEM_SIZE]
        self._lists = _Staged(sum(sizes), torch.int64, device)
        views = torch.split(self._lists.on_device, sizes)
        self._item_bounds, self._row_slots, self._row_positions, self._row_parts, self._items = (
            views
        )
        self._row_slots.fill_(-1)

    def plan(self, step: Step) -> None:
        work = work_list(step, self._tiling, self._offset_of)
        num_missing = self._num_rows - len(work.row_slots)  # they write nothing and have no parts
        self._lists.send(
            [0, work.num_low_items, len(work.items)],
            np.pad(work.row_slots, (0, num_missing), constant_values=-1),
            np.pad(work.row_positions, (0, num_missing)),
            np.pad(work.row_parts, (0, num_missing), mode="edge"),
            work.items.ravel(),
        )
        self._page_list.send(work.pages)

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
        _, num_heads, num_rows, head_dim = query.shape
        assert num_rows <= self._num_rows
        q, k, v = (t[0] if t.stride(-1) == 1 else t[0].contiguous() for t in (query, key, value))
        page_stride = self._pages.stride(0)
        kernels.write_kv[(num_rows,)](
            k, v, self._pages, self._row_slots, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            page_stride, module.layer_idx,
            NUM_KV_HEADS=self._num_kv_heads, PAGE_SIZE=self._tiling.page_size, HEAD_DIM=head_dim,
            BLOCK_H=_power_of_two(self._num_kv_heads), BLOCK_D=self._block_d,
        )  # fmt: skip
        scale = scaling if scaling is not None else head_dim**-0.5
        for is_high in (False, True):
            kernels.attend_items[(self._tiling.num_programs, self._num_kv_heads)](
                q, self._pages, self._items, self._item_bounds, self._page_list.on_device,
                self._row_positions, self._row_parts, self._part_out, self._part_lse,
                q.stride(0), q.stride(1), page_stride, module.layer_idx,
                scale if softcap else scale * math.log2(math.e),
                HIGH=is_high, NUM_KV_HEADS=self._num_kv_heads, GROUP=self._group,
                PAGE_SIZE=self._tiling.page_size, HEAD_DIM=head_dim, BLOCK_D=self._block_d,
                BLOCK_M=self._high if is_high else self._low, BLOCK_N=self._block_n,
                WINDOW=sliding_window or 0, SOFTCAP=softcap or 0.0,
                ALIGNMENT=_ALIGNMENT // self._pages.itemsize,
                num_warps=8 if is_high else 4, num_stages=3 if is_high else 5,
            )  # fmt: skip
        out = q.new_empty(1, num_rows, num_heads, head_dim)
        sinks = self._part_lse if s_aux is None else s_aux  # not read where there are none
        kernels.merge_parts[(num_rows, num_heads)](
            self._part_out, self._part_lse, self._row_parts, sinks, out,
            HAS_SINKS=s_aux is not None, HEAD_DIM=head_dim, BLOCK_D=self._block_d,
            BLOCK_P=_PARTS_PER_BLOCK,
        )  # fmt: skip
        return out, None

    def _offset_of(self, prefix: ResidentPrefix) -> int:
        """In elements, from the pool's first; negative where the prefix lies before the pool."""
        distance = prefix.kv.data_ptr() - self._pages.data_ptr()
        assert distance % _ALIGNMENT == 0
        assert prefix.kv.is_contiguous()
        return distance // prefix.kv.itemsize


class _Staged:
    """A buffer on the device that never moves, filled from pinned memory.

    A copy waits behind the forward before it, so there are two pinned buffers: while one waits, the
    next step fills the other.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.on_device = torch.zeros(size, dtype=dtype, device=device)
        new_event: Any = torch.cuda.Event if is_cuda else lambda: None
        self._pinned = [
            (torch.zeros(size, dtype=dtype, pin_memory=is_cuda), new_event()) for _ in range(2)
        ]

    def send(self, *parts: NDArray[np.int64] | list[int]) -> None:
        self._pinned.reverse()
        pinned, copied = self._pinned[0]
        if copied is not None:
            copied.synchronize()
        size = sum(map(len, parts))
        np.concatenate(parts, out=pinned[:size].numpy(), casting="same_kind")
        self.on_device[:size].copy_(pinned[:size], non_blocking=True)
        if copied is not None:
            copied.record()


def _power_of_two(size: int) -> int:
    """The smallest that is no smaller."""
    return 1 << (size - 1).bit_length()


def _num_cores(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4  # the interpreter: enough to cut work as a device would
