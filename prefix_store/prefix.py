"""Prefixes, their sources, and the geometry of the base model that a prefix has to match."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """Geometry that a prefix must match, measured by a forward pass, not read from the config."""

    name: str
    fingerprint: str
    """Binds a prefix to the weights it was made for: `sha256:<hex>`."""
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    dtype: str
    """The serving dtype, as torch names it: `float32`, `bfloat16`, `float16`."""
    kv_norms: tuple[tuple[float, float], ...] = ()
    """Per layer: the largest norm of a key and of a value among the model's own tokens."""
    loaded_from: str = ""
    """Folder or hub id. Trainers record this one, while clients know the model by `name`."""

    @property
    def num_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take on the device, over all layers."""
        itemsize = 4 if self.dtype == "float32" else 2
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of L virtual tokens at every layer (Li & Liang, 2021).

    Keys are stored as they lie in the cache, after RoPE, and are never rotated again. Real
    tokens take the positions `position_offset + 0, 1, 2, ...`.
    """

    keys: tuple[Tensor, ...]  # one per layer, [num_kv_heads, L, head_dim]
    values: tuple[Tensor, ...]  # one per layer, [num_kv_heads, L, head_dim]
    position_offset: int
    fingerprint: str
    """Fingerprint of the base model; empty if the source does not name one."""
    origin: dict[str, str] = field(default_factory=dict)
    """Provenance: `source_format`, `source_digest`, `tool`."""

    @property
    def num_virtual_tokens(self) -> int:
        return self.keys[0].shape[1]


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """Trained input embeddings (prompt tuning, P-tuning), which a forward turns into a `Prefix`."""

    embeddings: Tensor  # [L, hidden_size]
    source_format: str
    base_model: str = ""
    """Name of the model it was trained for, as the source has it; empty if it has none."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text or chat messages (exactly one is set) that one forward turns into a `Prefix`."""

    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None


@dataclass(frozen=True, slots=True)
class PrefixOf:
    """The stored prefix of another version of the same task."""

    version: int
