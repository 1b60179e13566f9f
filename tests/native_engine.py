"""Tiny engines with compiled layers, and the families that these are tested on."""

from __future__ import annotations

from dataclasses import replace

import torch
import transformers as T
from transformers import PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.memory.prefix import ResidentPrefix
from server.engine.native.backend import PAGE_SIZE, install
from server.engine.native.blocks import BlockPool, to_blocks
from server.engine.runner.forward import ModelForward
from tests import tiny_models
from tests.tiny_models import Engine, build_model, make_engine, random_prefix

ATOL = 2e-5
NUM_NEW = 20  # more than a block

SIZES = {
    "vocab_size": 97, "hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "wide-llama": T.LlamaConfig(**SIZES, attention_bias=True),
    "wide-qwen3": T.Qwen3Config(**SIZES, head_dim=32),
    "qwen2": T.Qwen2Config(**SIZES),
    "llama3-rope": T.LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        },
    ),
}  # fmt: skip


def spec_of(model: PreTrainedModel) -> BaseModelSpec:
    return tiny_models.spec_of(model.config)


def prefixes_for(spec: BaseModelSpec) -> list[ResidentPrefix | None]:
    """The longest is processed in several chunks."""
    return [
        None,
        *(random_prefix(spec, num_tokens, seed=num_tokens) for num_tokens in (1, 16, 300)),
    ]


def in_blocks(prefix: ResidentPrefix | None) -> ResidentPrefix | None:
    if prefix is None:
        return None
    return ResidentPrefix(to_blocks(prefix.kv), prefix.position_offset, prefix.num_tokens)


def in_float64(prefix: ResidentPrefix | None) -> ResidentPrefix | None:
    return prefix and replace(prefix, kv=prefix.kv.double())


def prompt(seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (1 + seed * 7 % 30,), generator=generator).tolist()


def native_engine(
    family: str, num_threads: int, max_num_batched_tokens: int = 24, *, int8: bool = False
) -> Engine:
    model = build_model(family, "foreword")
    backend = install(model, spec_of(model), num_threads, int8=int8)
    engine = make_engine(
        model, backend, page_size=PAGE_SIZE, num_pages=60,
        max_num_batched_tokens=max_num_batched_tokens,
    )  # fmt: skip
    engine.rebuild_runner(forward=ModelForward(model, backend.bare_forward))
    engine.pool = BlockPool(spec_of(model), num_pages=60, page_size=PAGE_SIZE, device="cpu")
    backend.allocate(engine.pool)
    return engine
