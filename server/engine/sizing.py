"""Defaults for the device, the dtype and the sizes of KV pool and prefix memory."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from server.engine.model.load import LoadedModel

if TYPE_CHECKING:
    from server.engine.ipc.messages import EngineConfig

logger = logging.getLogger(__name__)

_SMALL_PAGE = 16
_MIN_CONTEXT = 16
_GIB = 1 << 30
_USABLE = 0.92
"""Usable fraction of a CUDA device's free memory; the rest is lost to fragmentation."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Context length and size of the KV pool."""

    max_model_len: int
    """Maximum tokens of a sequence: prefix, prompt and completion."""
    num_pages: int
    page_size: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of device memory for the KV pool and for prefixes."""

    kv: int
    prefixes: int


def choose_device(requested: str) -> str:
    """Resolve the setting `device`. Raises ValueError if CUDA is requested but not available."""
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch finds no CUDA device here; use device=cpu")
    return requested


def choose_dtype(requested: str, device: str) -> str:
    """Resolve the setting `dtype`: bfloat16 if the device multiplies it natively, else float32."""
    if requested != "auto":
        return requested
    if device == "cuda":
        return "bfloat16"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def default_extra_tokens(device: str) -> int:
    """Resolve the setting `max_extra_tokens_per_key`: about as many tokens as make a step take
    twice as long as an empty one."""
    return 128 if device == "cuda" else 12


def cpu_budget(config: EngineConfig) -> Budget:
    """Take both sizes from the settings; by default a quarter of the memory, and 1 GiB."""
    prefixes = config.device_prefix_bytes
    return Budget(
        kv=config.kv_cache_bytes or _memory_bytes() // 4,
        prefixes=_GIB if prefixes is None else prefixes,
    )


def cuda_budget(config: EngineConfig, *, num_free_bytes: int, num_reserved_bytes: int) -> Budget:
    """Split the usable memory: by default a quarter for prefixes, the rest for the KV pool.

    `num_reserved_bytes` is left for activations. Raises ValueError if the settings exceed the
    usable memory.
    """
    usable = int(num_free_bytes * _USABLE) - num_reserved_bytes
    prefixes = config.device_prefix_bytes
    if prefixes is None:
        prefixes = max(0, usable) // 4
    kv = config.kv_cache_bytes or usable - prefixes
    if not 0 < kv <= usable - prefixes:
        raise ValueError(
            f"{usable} of {num_free_bytes} free bytes on the device can be used; "
            f"{prefixes} for prefixes and {kv} for the KV pool do not fit: lower "
            "device_prefix_bytes, kv_cache_bytes or max_num_batched_tokens, or use a smaller model"
        )
    return Budget(kv, prefixes)


def activation_bytes(
    *, num_tokens: int, num_rows: int, hidden_size: int, vocab_size: int, itemsize: int
) -> int:
    """Return an upper bound of the memory that a step uses besides weights and KV, in bytes.

    A layer holds about 24 vectors of the hidden size per token at a time, most of them in its MLP.
    Sampling needs about 64 bytes per logit, most of them in a sort. Graphs, workspaces of libraries
    and attention's partial results take half a GiB.
    """
    layer = num_tokens * hidden_size * itemsize * 24
    sampling = num_rows * vocab_size * 64
    return layer + sampling + _GIB // 2


def sizes(config: EngineConfig, loaded: LoadedModel, budget: int, *, paged: bool) -> Sizes:
    """Choose the number and size of pages for `budget` bytes of KV.

    A single sequence of `max_model_len` tokens always fits. If not `paged`, a page holds a whole
    sequence. Raises ValueError if the context is too long for the model or for `budget`.
    """
    num_tokens = budget // loaded.spec.num_bytes_per_token
    num_pages = num_tokens // _SMALL_PAGE
    share = num_pages * _SMALL_PAGE if paged else num_tokens // config.max_num_seqs
    fitting = min(loaded.max_positions, share) // _SMALL_PAGE * _SMALL_PAGE
    requested = config.max_model_len or fitting
    if requested > loaded.max_positions:
        raise ValueError(
            f"max_model_len {requested} is more than the model's {loaded.max_positions} positions"
        )
    if not _MIN_CONTEXT <= requested <= share:
        raise ValueError(
            f"kv_cache_bytes {budget} holds {share} tokens per sequence, {requested} are needed: "
            "raise kv_cache_bytes, or lower max_num_seqs or max_model_len"
        )
    if config.max_model_len is None and share < loaded.max_positions:
        logger.warning(
            "max_model_len is %d of the model's %d positions: kv_cache_bytes %d holds no more",
            requested, loaded.max_positions, budget,
        )  # fmt: skip
    if paged:
        return Sizes(requested, num_pages, _SMALL_PAGE)
    return Sizes(requested, config.max_num_seqs, requested)


def _memory_bytes() -> int:
    """Return the memory of the machine, or of the container if that has a limit."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
