"""The memory layout of keys and values for the compiled layers: blocks of 16 tokens.

A block holds keys as [head_dim / pack, 16, pack] and values as [16 / pack, head_dim, pack]. `pack`
is the number of values in a 32-bit lane, which one instruction multiplies: two bfloat16 or one
float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from server.engine.memory.kv_pool import KvPool
from server.engine.native.memory import to_huge_pages

BLOCK = 16


def pack_size(dtype: torch.dtype) -> int:
    """Return the number of values in a 32-bit lane."""
    return 4 // dtype.itemsize


def to_blocks(kv: Tensor) -> Tensor:
    """Lay out keys and values [num_layers, 2, num_kv_heads, L, head_dim] in blocks.

    The result has that shape with L rounded up to a multiple of 16; the padding is zero.
    """
    num_tokens, head_dim = kv.shape[3:]
    pack = pack_size(kv.dtype)
    kv = pad(kv, (0, 0, 0, -num_tokens % BLOCK))
    keys, values = kv.unbind(1)
    heads = keys.shape[:2]  # layers, heads
    keys = keys.reshape(*heads, -1, BLOCK, head_dim // pack, pack).transpose(3, 4)
    values = values.reshape(*heads, -1, BLOCK // pack, pack, head_dim).transpose(4, 5)
    shape = (*heads, -1, head_dim)
    return to_huge_pages(torch.stack([keys.reshape(shape), values.reshape(shape)], dim=1))


def from_blocks(blocks: Tensor, num_tokens: int) -> Tensor:
    """Invert `to_blocks`: [num_layers, 2, num_kv_heads, num_tokens, head_dim]."""
    head_dim = blocks.shape[4]
    pack = pack_size(blocks.dtype)
    keys, values = blocks.unbind(1)
    shape = keys.shape  # [num_layers, num_kv_heads, slots, head_dim]
    heads = shape[:2]
    keys = keys.reshape(*heads, -1, head_dim // pack, BLOCK, pack).transpose(3, 4)
    values = values.reshape(*heads, -1, BLOCK // pack, head_dim, pack).transpose(4, 5)
    kv = torch.stack([keys.reshape(shape), values.reshape(shape)], dim=1)
    return kv[:, :, :, :num_tokens].contiguous()


class BlockPool(KvPool):
    """A KV pool whose pages consist of blocks."""

    def read(self, pages: list[int], num_tokens: int) -> Tensor:
        return from_blocks(super().read(pages, len(pages) * self.page_size), num_tokens)
