"""The adapter between transformers' attention interface and the backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from server.engine.attention.base import AttentionCall

ATTENTION_NAME = "foreword"
"""The name under which transformers finds the registered attention."""

Attend = Callable[[int, Tensor, Tensor, Tensor, AttentionCall], Tensor]
"""`AttentionBackend.attend`."""


def register(attend: Attend) -> None:
    """Let all models with `attn_implementation=ATTENTION_NAME` call `attend`, from now on."""

    def call_backend(
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
        if scaling is None:
            scaling = query.shape[-1] ** -0.5
        call = AttentionCall(scaling, sliding_window, softcap, s_aux)
        return attend(module.layer_idx, query[0], key[0], value[0], call)[None], None

    AttentionInterface.register(ATTENTION_NAME, call_backend)
