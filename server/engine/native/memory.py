"""Memory in huge pages for what every step reads once from end to end: weights and prefixes."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor


def in_huge_pages(tensor: Tensor) -> Tensor:
    """A copy. In pages of 4 KiB a step waits for the page table more than for the memory."""
    num_bytes = tensor.numel() * tensor.itemsize
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
