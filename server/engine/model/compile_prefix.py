"""Text and soft prompts become prefixes: run as a sequence, then its own KV is read out."""

from __future__ import annotations

from safetensors.torch import load
from torch import Tensor

from prefix_store.prefix import BaseModelSpec, Prefix


def prefix_of(kv: Tensor, spec: BaseModelSpec, origin: dict[str, str]) -> Prefix:
    """`kv`: [num_layers, 2, num_kv_heads, L, head_dim], as it lies in the pool, after RoPE."""
    keys, values = kv.cpu().unbind(1)
    return Prefix(
        keys=tuple(keys.unbind(0)),
        values=tuple(values.unbind(0)),
        position_offset=kv.shape[3],
        fingerprint=spec.fingerprint,
        origin=origin,
    )


def read_embeddings(blob: bytes, spec: BaseModelSpec) -> Tensor:
    """Input embeddings [L, hidden_size] from the blob that the API process wrote."""
    embeddings = load(blob)["embeddings"]
    if embeddings.ndim != 2 or embeddings.shape[1] != spec.hidden_size:
        raise ValueError(f"expected [L, {spec.hidden_size}], got {tuple(embeddings.shape)}")
    return embeddings
