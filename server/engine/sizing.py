"""Device, dtype and the size of the KV pool, where the settings leave them open."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from server.engine.messages import EngineConfig
from server.engine.model.load import LoadedModel

_SMALL_PAGE = 16
_MIN_CONTEXT = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    max_model_len: int
    """Tokens of prefix, prompt and completion together."""
    num_pages: int
    page_size: int


def choose_device(wanted: str) -> str:
    if wanted == "auto":
        return "cpu"
    if wanted == "cuda":
        raise ValueError("this version has no attention backend for CUDA yet; use device=cpu")
    return wanted


def choose_dtype(wanted: str) -> str:
    """bfloat16 where the processor multiplies it natively, else float32."""
    if wanted != "auto":
        return wanted
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def sizes(config: EngineConfig, loaded: LoadedModel, *, paged: bool) -> Sizes:
    """How many pages of which size. Raises ValueError where the memory holds no useful context."""
    budget = config.kv_cache_bytes or _memory_bytes() // 4
    num_tokens = budget // loaded.spec.num_bytes_per_token
    share = num_tokens if paged else num_tokens // config.max_num_seqs
    fitting = min(loaded.max_positions, share) // _SMALL_PAGE * _SMALL_PAGE
    wanted = config.max_model_len or fitting
    if wanted > loaded.max_positions:
        raise ValueError(
            f"max_model_len {wanted} is beyond the model's {loaded.max_positions} positions"
        )
    if not _MIN_CONTEXT <= wanted <= max(share, _MIN_CONTEXT):
        raise ValueError(
            f"kv_cache_bytes {budget} holds {share} tokens a sequence, {wanted} are wanted: "
            "raise kv_cache_bytes, or lower max_num_seqs or max_model_len"
        )
    if paged:
        return Sizes(wanted, num_tokens // _SMALL_PAGE, _SMALL_PAGE)
    return Sizes(wanted, config.max_num_seqs, wanted)


def _memory_bytes() -> int:
    """Of the machine, or of the container that this runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
