"""A base model from disk, with our attention in it, measured and frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import ATTENTION_NAME, AttentionBackend
from server.engine.model.families import UnsupportedModel, check_supported, max_positions
from server.engine.model.fingerprint import fingerprint

_NUM_PROBE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The frozen base model and what the engine has to know of it."""

    model: PreTrainedModel
    spec: BaseModelSpec
    num_heads: int
    """Of the queries."""
    max_positions: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


def load(path: str, *, dtype: str, device: str, backend: AttentionBackend) -> LoadedModel:
    """Raises `UnsupportedModel`, and OSError where there is no model."""
    AttentionInterface.register(ATTENTION_NAME, backend.attend)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype), attn_implementation=ATTENTION_NAME, use_safetensors=True
    )
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    check_supported(model.config)
    spec, num_heads = _measure(model, Path(path).name, dtype)
    AttentionInterface.register(ATTENTION_NAME, backend.attend)
    return LoadedModel(
        model=model,
        spec=spec,
        num_heads=num_heads,
        max_positions=max_positions(model.config),
        vocab_size=model.get_input_embeddings().num_embeddings,
        eos_token_ids=_eos_token_ids(model.generation_config),
    )


def _measure(model: PreTrainedModel, name: str, dtype: str) -> tuple[BaseModelSpec, int]:
    """The shapes of one real forward, and its query heads: config fields lie for some families."""
    shapes: dict[int, tuple[int, int, int]] = {}
    norms: dict[int, tuple[float, float]] = {}

    def probe(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if key.shape != value.shape:
            raise UnsupportedModel(
                f"keys {tuple(key.shape)} and values {tuple(value.shape)} differ"
            )
        shapes[module.layer_idx] = (query.shape[1], key.shape[1], key.shape[3])
        norms[module.layer_idx] = (_longest(key), _longest(value))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION_NAME, probe)
    positions = torch.arange(_NUM_PROBE_TOKENS, device=model.device)[None]
    token_ids = positions * 7919 % model.get_input_embeddings().num_embeddings  # some of all kinds
    with torch.inference_mode():
        model(input_ids=token_ids, position_ids=positions, use_cache=False)
    num_layers = model.config.num_hidden_layers
    if sorted(shapes) != list(range(num_layers)) or len(set(shapes.values())) != 1:
        raise UnsupportedModel(
            f"{model.config.model_type}: attention was seen in {len(shapes)} of {num_layers} "
            f"layers, with shapes {sorted(set(shapes.values()))}; all must have the same"
        )
    num_heads, num_kv_heads, head_dim = shapes[0]
    hidden_size = model.get_input_embeddings().weight.shape[1]
    spec = BaseModelSpec(
        name,
        fingerprint(model),
        num_layers,
        num_kv_heads,
        head_dim,
        hidden_size,
        dtype,
        kv_norms=tuple(norms[i] for i in range(num_layers)),
    )
    return spec, num_heads


def _longest(vectors: Tensor) -> float:
    return float(vectors.float().norm(dim=-1).max())


def _eos_token_ids(config: GenerationConfig | None) -> tuple[int, ...]:
    eos = config.eos_token_id if config is not None else None
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (eos,)
