"""The CUDA backend: Triton kernels whose fixed grid works through a list in device memory.

An item of the list is (some rows, a range of one segment of keys and values); `work_list` has a
drawing. A task's prefix is read once for all its rows. Partial results are kept in float32 and
merged by log-sum-exp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton import next_power_of_2

from server.engine.attention import triton_kernels as kernels
from server.engine.attention.base import AttentionCall, BatchCapacity, Step
from server.engine.attention.work_list import ITEM_SIZE, Tiling, work_list
from server.engine.memory.kv_pool import KvPool

_ALIGNMENT = 16
"""Bytes of the device's widest load. Allocators align tensors to at least this."""
_KEY_BLOCK_BYTES = 16384
"""Bytes of the block of keys that a program holds at once."""
_PROGRAMS_PER_CORE = 2
_PARTS_PER_BLOCK = 16


class TritonBackend:
    """Attention on a CUDA device. `min_keys`: the smallest range of keys worth its own item."""

    name = "triton"
    graph_safe = True

    def __init__(self, *, min_keys: int = 256) -> None:
        self._min_keys = min_keys

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        assert capacity is not None
        self._pages = pool.pages
        _, _, _, self._num_kv_heads, page_size, self._head_dim = pool.pages.shape
        self._group = capacity.num_heads // self._num_kv_heads
        self._block_d = max(16, next_power_of_2(self._head_dim))
        block_bytes = self._block_d * pool.pages.itemsize
        self._block_n = min(64, max(16, _KEY_BLOCK_BYTES // block_bytes))
        # Tile heights for few rows (decode) and many (prefill), in rows x query heads per KV head.
        self._low = max(16, next_power_of_2(self._group))
        self._high = max(self._low, 128 if block_bytes <= 256 else 64)
        device = pool.pages.device
        num_programs = -(-_PROGRAMS_PER_CORE * _num_cores(device) // self._num_kv_heads)
        high_rows = self._high // self._group
        max_parts = 2 * capacity.max_num_rows + 4 * num_programs * high_rows
        self._tiling = Tiling(
            page_size=page_size,
            low_rows=self._low // self._group,
            high_rows=high_rows,
            num_programs=num_programs,
            min_keys=self._min_keys,
            max_parts=max_parts,
        )
        shape = (max_parts, capacity.num_heads, self._head_dim)
        self._part_out = torch.empty(shape, dtype=torch.float32, device=device)
        self._part_lse = torch.empty(shape[:2], dtype=torch.float32, device=device)
        num_rows = self._num_rows = capacity.max_num_rows
        max_pages = capacity.max_num_seqs * -(-capacity.max_seq_len // page_size)
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
        # Rows past the step: they write nothing (slot -1) and have no partial results.
        num_missing = self._num_rows - len(work.row_slots)
        num_empty = self._num_rows + 1 - len(work.row_parts)
        self._lists.send(
            [0, work.num_low_items, len(work.items)],
            np.pad(work.row_slots, (0, num_missing), constant_values=-1),
            np.pad(work.row_positions, (0, num_missing)),
            np.pad(work.row_parts, (0, num_empty), mode="edge"),
            work.items.ravel(),
        )
        self._page_list.send(work.pages)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        num_heads, num_rows, head_dim = q.shape
        assert num_rows <= self._num_rows
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        page_stride = self._pages.stride(0)
        kernels.write_kv[(num_rows,)](
            k, v, self._pages, self._row_slots, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            page_stride, layer,
            NUM_KV_HEADS=self._num_kv_heads, PAGE_SIZE=self._tiling.page_size, HEAD_DIM=head_dim,
            BLOCK_H=next_power_of_2(self._num_kv_heads), BLOCK_D=self._block_d,
        )  # fmt: skip
        for is_high in (False, True):
            kernels.attend_items[(self._tiling.num_programs, self._num_kv_heads)](
                q, self._pages, self._items, self._item_bounds, self._page_list.on_device,
                self._row_positions, self._row_parts, self._part_out, self._part_lse,
                q.stride(0), q.stride(1), page_stride, layer,
                call.scaling if call.softcap else call.scaling * math.log2(math.e),
                HIGH=is_high, NUM_KV_HEADS=self._num_kv_heads, GROUP=self._group,
                PAGE_SIZE=self._tiling.page_size, HEAD_DIM=head_dim, BLOCK_D=self._block_d,
                BLOCK_M=self._high if is_high else self._low, BLOCK_N=self._block_n,
                WINDOW=call.sliding_window or 0, SOFTCAP=call.softcap or 0.0,
                ALIGNMENT=_ALIGNMENT // self._pages.itemsize,
                num_warps=8 if is_high else 4, num_stages=3 if is_high else 5,
            )  # fmt: skip
        out = q.new_empty(num_rows, num_heads, head_dim)
        sinks = self._part_lse if call.sinks is None else call.sinks  # without sinks: any pointer
        kernels.merge_parts[(num_rows, num_heads)](
            self._part_out, self._part_lse, self._row_parts, sinks, out,
            HAS_SINKS=call.sinks is not None, HEAD_DIM=head_dim, BLOCK_D=self._block_d,
            BLOCK_P=_PARTS_PER_BLOCK,
        )  # fmt: skip
        return out

    def _offset_of(self, kv: Tensor) -> int:
        """Return the distance from the pool to a segment's keys and values, in elements.

        It is negative if they have the lower address.
        """
        distance = kv.data_ptr() - self._pages.data_ptr()
        assert distance % _ALIGNMENT == 0
        assert kv.is_contiguous()
        return distance // kv.itemsize


class _Staged:
    """A device buffer at a fixed address, filled from pinned host memory.

    A copy is queued after the previous step's forward, so there are two pinned buffers: while one
    waits to be copied, the next step fills the other.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.on_device = torch.zeros(size, dtype=dtype, device=device)
        new_event: Any = torch.cuda.Event if is_cuda else lambda: None
        self._pinned = [
            (torch.zeros(size, dtype=dtype, pin_memory=is_cuda), new_event()) for _ in range(2)
        ]

    def send(self, *parts: NDArray[np.int64] | list[int]) -> None:
        """Queue a copy of the concatenated `parts` to the start of the device buffer."""
        self._pinned.reverse()
        pinned, copied = self._pinned[0]
        if copied is not None:
            copied.synchronize()
        size = sum(map(len, parts))
        np.concatenate(parts, out=pinned[:size].numpy(), casting="same_kind")
        self.on_device[:size].copy_(pinned[:size], non_blocking=True)
        if copied is not None:
            copied.record()


def _num_cores(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 4  # Triton's interpreter: enough for work to be split as on a device
