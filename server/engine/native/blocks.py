"""Keys and values as the compiled layers read them: blocks of sixteen tokens.

A block holds keys as [head_dim / pack, 16, pack] and values as [16 / pack, head_dim, pack], where
`pack` is how many values one 32-bit lane multiplies at once: two bfloat16, one float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from server.engine.kv_pool import KvPool

BLOCK = 16


def pack_size(dtype: torch.dtype) -> int:
    return 4 // dtype.itemsize


def to_blocks(kv: Tensor) -> Tensor:
    """[num_layers, 2, num_kv_heads, L, head_dim] -> the same with L rounded up, in blocks."""
    num_tokens, head_dim = kv.shape[3:]
    pack = pack_size(kv.dtype)
    kv = pad(kv, (0, 0, 0, -num_tokens % BLOCK))
    keys, values = kv.unbind(1)
    keys = keys.unflatten(2, (-1, BLOCK)).unflatten(-1, (-1, pack))  # [..., n, 16, D / p, p]
    values = values.unflatten(2, (-1, BLOCK // pack, pack))  # [..., n, 16 / p, p, D]
    packed = [keys.transpose(3, 4).flatten(2), values.transpose(4, 5).flatten(2)]
    return torch.stack(packed, dim=1).unflatten(3, (-1, head_dim))


def from_blocks(blocks: Tensor, num_tokens: int) -> Tensor:
    """What `to_blocks` undid."""
    head_dim = blocks.shape[4]
    pack = pack_size(blocks.dtype)
    keys, values = blocks.flatten(3).unbind(1)
    keys = keys.unflatten(2, (-1, head_dim // pack, BLOCK, pack)).transpose(3, 4).flatten(4)
    values = values.unflatten(2, (-1, BLOCK // pack, head_dim, pack)).transpose(4, 5)
    shape = (*blocks.shape[:1], *blocks.shape[2:])
    kv = torch.stack([keys.reshape(shape), values.reshape(shape)], dim=1)
    return kv[:, :, :, :num_tokens].contiguous()


class BlockPool(KvPool):
    """The KV pool, each page one or more blocks."""

    def read(self, pages: list[int], num_tokens: int) -> Tensor:
        return from_blocks(super().read(pages, len(pages) * self.page_size), num_tokens)
