"""Prefixes from text and soft prompts: the KV of a sequence that ran through the engine."""

from __future__ import annotations

from safetensors.torch import load
from torch import Tensor

from prefix_store.prefix import BaseModelSpec, Prefix


def prefix_of(kv: Tensor, spec: BaseModelSpec, origin: dict[str, str]) -> Prefix:
    """Make a prefix from the KV of L tokens, read from the pool (keys after RoPE).

    kv: [num_layers, 2, num_kv_heads, L, head_dim].
    """
    keys, values = kv.cpu().unbind(1)
    return Prefix(
        keys=tuple(keys.unbind(0)),
        values=tuple(values.unbind(0)),
        position_offset=kv.shape[3],
        fingerprint=spec.fingerprint,
        origin=origin,
    )


def read_embeddings(blob: bytes | bytearray, spec: BaseModelSpec) -> Tensor:
    """Read input embeddings [L, hidden_size] from a blob that the API process wrote.

    Raises ValueError if they have another shape.
    """
    embeddings = load(bytes(blob))["embeddings"]
    if embeddings.ndim != 2 or embeddings.shape[1] != spec.hidden_size:
        raise ValueError(f"expected [L, {spec.hidden_size}], got {tuple(embeddings.shape)}")
    return embeddings
