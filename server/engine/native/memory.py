"""Huge pages for memory that every step reads from start to end: weights and prefixes."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor


def to_huge_pages(tensor: Tensor) -> Tensor:
    """Copy a tensor to huge pages.

    With pages of 4 KiB a step waits longer for page table lookups than for the memory itself.
    """
    num_bytes = tensor.numel() * tensor.itemsize
    memory = mmap.mmap(-1, num_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
