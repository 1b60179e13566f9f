"""The KV pool: keys and values of running sequences, in pages that are allocated once."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from prefix_store.prefix import BaseModelSpec


class KvPool:
    """Pool of pages, one tensor for all layers.

    On a CPU a page holds a whole sequence, which torch's attention can read without a copy. On a
    GPU pages are small.
    """

    def __init__(self, spec: BaseModelSpec, *, num_pages: int, page_size: int, device: str) -> None:
        shape = (num_pages, spec.num_layers, 2, spec.num_kv_heads, page_size, spec.head_dim)
        self.page_size = page_size
        self.pages = _zeros(shape, getattr(torch, spec.dtype), device)
        # [num_pages, num_layers, 2 (keys, values), num_kv_heads, page_size, head_dim]

    def read(self, pages: list[int], num_tokens: int) -> Tensor:
        """Copy a sequence's first tokens: [num_layers, 2, num_kv_heads, num_tokens, head_dim]."""
        kv = self.pages[pages].movedim(0, 3)  # pages next to their slots
        return kv.flatten(3, 4)[:, :, :, :num_tokens].contiguous()

    def layer(self, layer: int, pages: Sequence[int], num_tokens: int) -> Tensor:
        """Return keys and values of one layer: [2, num_kv_heads, num_tokens, head_dim]."""
        kv = self.pages[list(pages), layer]  # [pages, 2, num_kv_heads, page_size, head_dim]
        return kv.movedim(0, 2).flatten(2, 3)[:, :, :num_tokens]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Allocate a tensor of zeros. Zeros, because slots that attention masks must be finite.

    On a CPU, memory is committed when it is first written, 4 KiB at a time. With huge pages, the
    first token of a sequence would commit and zero its whole page of the pool, which takes seconds
    and gigabytes.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
