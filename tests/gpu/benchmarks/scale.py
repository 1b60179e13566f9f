"""The size of a benchmark: full for a CUDA device, tiny for tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Geometry:
    """Geometry of a Llama model with random weights."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    """Whether the head is the embedding."""


@dataclass(frozen=True, slots=True)
class Scale:
    device: str
    geometries: tuple[Geometry, ...]
    batch_sizes: tuple[int, ...]
    num_prompt_tokens: int
    num_tasks: int
    num_prefix_tokens: int
    num_steps: int
    """Timed steps, which follow some untimed ones."""
    copy_bytes: int
    """Size of the buffer whose copy is timed: much larger than any cache."""


LLAMA_1B = Geometry("1b", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True)
LLAMA_8B = Geometry("8b", 32, 4096, 14_336, 32, 8, 128, 128_256, tied=False)
TINY_LLAMA = Geometry("tiny", 2, 32, 48, 4, 2, 8, 101, tied=True)

FULL = Scale("cuda", (LLAMA_1B, LLAMA_8B), (1, 64), 256, 8, 8192, 64, 4 << 30)
TINY = Scale("cpu", (TINY_LLAMA,), (1, 4), 5, 2, 6, 3, 1 << 20)
