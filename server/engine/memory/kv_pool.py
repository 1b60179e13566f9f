"""The KV pool: keys and values of running sequences, in pages, allocated once."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from prefix_store.prefix import BaseModelSpec


class KvPool:
    """One tensor for all layers.

    On a CPU a page is as long as the context, one slab for each sequence, which torch's attention
    takes without copying; on a GPU pages are small.
    """

    def __init__(self, spec: BaseModelSpec, *, num_pages: int, page_size: int, device: str) -> None:
        shape = (num_pages, spec.num_layers, 2, spec.num_kv_heads, page_size, spec.head_dim)
        self.page_size = page_size
        self.pages = _zeros(shape, getattr(torch, spec.dtype), device)
        # [num_pages, num_layers, 2 (keys, values), num_kv_heads, page_size, head_dim]

    def read(self, pages: list[int], num_tokens: int) -> Tensor:
        """A copy of a sequence's start: [num_layers, 2, num_kv_heads, num_tokens, head_dim]."""
        kv = self.pages[pages].movedim(0, 3)  # the pages go beside their slots
        return kv.flatten(3, 4)[:, :, :, :num_tokens].contiguous()

    def layer(self, layer: int, pages: list[int], num_tokens: int) -> Tensor:
        """Keys and values of one layer: [2, num_kv_heads, num_tokens, head_dim]."""
        kv = self.pages[pages, layer].movedim(0, 2)  # [2, num_kv_heads, pages, page_size, head_dim]
        return kv.flatten(2, 3)[:, :, :num_tokens]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeroed, because masked slots must be finite.

    On a CPU memory is taken as it is written, 4 KiB at a time: with huge pages the first token of a
    sequence would zero its whole slab, which takes seconds and gigabytes.
    """
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
