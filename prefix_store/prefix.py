"""What a prefix is, and what a base model asks of one."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """What a prefix must fit: measured by one real forward, not read from config fields."""

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
    """Of every layer: the longest key and the longest value of a token of the model's own."""
    loaded_from: str = ""
    """Its folder or hub id, which trainers write down where clients know it by `name`."""

    @property
    def num_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take on the device."""
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
    """Of the base model, or empty where the source does not say."""
    origin: dict[str, str] = field(default_factory=dict)
    """Where it came from: `source_format`, `source_digest`, `tool`."""

    @property
    def num_virtual_tokens(self) -> int:
        return self.keys[0].shape[1]


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """Learned input embeddings: prompt tuning, P-tuning. One forward turns them into a `Prefix`."""

    embeddings: Tensor  # [L, hidden_size]
    source_format: str
    base_model: str = ""
    """What the source calls the model it was trained for, if it says so."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Plain text, or chat messages, that one forward turns into a `Prefix`. Exactly one is set."""

    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
