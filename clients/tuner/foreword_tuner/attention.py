"""Attention for training with a prefix that the whole batch shares.

PEFT copies the prefix into a cache for every row of a batch. Here the queries of all rows are
multiplied with the one prefix in a single product per layer and head, and so is its gradient: no
copies, and no sum over them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from foreword_tuner.errors import TunerError


class SharedPrefixAttention:
    """The attention function of a model's layers. `name` is its `attn_implementation`."""

    def __init__(self) -> None:
        self.name = f"foreword_tuner_{id(self):x}"
        self.prefix: Tensor | None = None  # [num_layers, 2, num_kv_heads, L, head_dim]
        AttentionInterface.register(self.name, self.attend)

    def attend(
        self,
        module: Any,
        query: Tensor,  # [B, num_heads, T, head_dim]
        key: Tensor,  # [B, num_kv_heads, S, head_dim], of which the last T are the queries' own
        value: Tensor,
        attention_mask: Tensor | None = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Causal attention, [B, T, num_heads, head_dim]. Computes in float32: the backward pass of
        small products is slower in bfloat16."""
        if s_aux is not None:
            raise TunerError("a model with attention sinks cannot be trained with a prefix")
        num_rows, num_heads, num_tokens, head_dim = query.shape
        num_kv_heads = key.shape[1]
        scale = scaling if scaling is not None else head_dim**-0.5
        # Query heads that share a KV head are treated as further queries of it.
        q = (query * scale).float().reshape(num_rows, num_kv_heads, -1, head_dim)
        scores = q @ key.float().transpose(-1, -2)  # [B, num_kv_heads, group * T, S]
        num_prefix_tokens = 0
        if self.prefix is not None:
            keys, values = self.prefix[module.layer_idx].float()  # [num_kv_heads, L, head_dim]
            num_prefix_tokens = keys.shape[1]
            scores = torch.cat((_shared(q, keys.transpose(-1, -2)), scores), dim=-1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        num_keys = num_prefix_tokens + key.shape[2]
        hidden = _hidden(num_tokens, num_keys, sliding_window, query.device)
        group = num_heads // num_kv_heads
        weights = scores.masked_fill(hidden.repeat(group, 1), float("-inf")).softmax(dim=-1)
        out = weights[..., num_prefix_tokens:] @ value.float()
        if self.prefix is not None:
            out = out + _shared(weights[..., :num_prefix_tokens], values)
        out = out.view(num_rows, num_heads, num_tokens, head_dim).transpose(1, 2)
        return out.to(query.dtype).contiguous(), None


def _shared(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply `rows` [B, H, N, a] with `matrix` [H, a, b], which the batch shares."""
    num_rows, num_heads, num, width = rows.shape
    flat = rows.transpose(0, 1).reshape(num_heads, num_rows * num, width)
    return torch.bmm(flat, matrix).view(num_heads, num_rows, num, -1).transpose(0, 1)


def _hidden(
    num_tokens: int, num_keys: int, sliding_window: int | None, device: torch.device
) -> Tensor:
    """Return the mask of keys that a query does not see, [T, num_keys]. The prefix comes first."""
    at = torch.arange(num_keys, device=device)
    distance = at[num_keys - num_tokens :, None] - at[None]
    hidden = distance < 0
    return hidden if sliding_window is None else hidden | (distance >= sliding_window)
