"""A tiny random Llama, directories that PEFT saved for it, and a cache filled by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    CartridgeConfig,
    CPTConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import save
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from prefix_store import formats
from prefix_store.formats import peft
from prefix_store.prefix import BaseModelSpec, Prefix, SoftPrompt

L = 5
IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89]])
BASE = BaseModelSpec(
    name="tiny-llama",
    fingerprint="sha256:" + "ab" * 32,
    num_layers=3,
    num_kv_heads=2,
    head_dim=16,
    hidden_size=64,
    dtype="float32",
)
KEYS_AND_VALUES: dict[str, Callable[[], Any]] = {
    "peft-prefix-tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=L),
    "projected": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=L, prefix_projection=True, encoder_hidden_size=48
    ),
    "peft-cartridge": lambda: CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=L),
}
EMBEDDINGS: dict[str, Callable[[], Any]] = {
    "peft-prompt-tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=L),
    "peft-p-tuning": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=L, encoder_hidden_size=32
    ),
    "peft-cpt": lambda: CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[3, 4, 5, 6, 7],
        cpt_mask=[1] * 5,
        cpt_tokens_type_mask=[1, 2, 2, 3, 4],
    ),
}


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in llama.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    return llama


@dataclass(frozen=True)
class Trained:
    """A directory PEFT saved, and the logits PEFT gives for `IDS` once it is loaded again."""

    folder: Path
    logits: Tensor  # [num_tokens, vocab_size]

    @property
    def weights(self) -> bytes:
        return (self.folder / peft.WEIGHTS).read_bytes()

    def tar(self, top: str = "") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(self.folder, arcname=top or ".")
        return buffer.getvalue()


def train(config: Any, folder: Path) -> Trained:
    tuned = get_peft_model(model(), config)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in tuned.prompt_encoder["default"].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    tuned.eval().save_pretrained(folder)
    return Trained(folder, peft_logits(folder))


@torch.no_grad()
def peft_logits(folder: Path) -> Tensor:
    tuned = PeftModel.from_pretrained(model(), folder).eval()
    logits: Tensor = tuned(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[0]
    return logits[-IDS.shape[1] :]  # soft prompts give rows for themselves too


@torch.no_grad()
def logits_behind(prefix: Prefix) -> Tensor:
    """Independent of PEFT: a cache filled by hand."""
    cache = DynamicCache(
        [(k[None], v[None]) for k, v in zip(prefix.keys, prefix.values, strict=True)]
    )
    num_tokens = IDS.shape[1]
    positions = torch.arange(num_tokens)[None] + prefix.position_offset
    mask = torch.ones(1, prefix.num_virtual_tokens + num_tokens, dtype=torch.long)
    logits: Tensor = model()(
        input_ids=IDS, attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits[0]
    return logits


@torch.no_grad()
def run(soft: SoftPrompt) -> Prefix:
    cache = model()(
        inputs_embeds=soft.embeddings[None], past_key_values=DynamicCache()
    ).past_key_values
    return Prefix(
        keys=tuple(layer.keys[0] for layer in cache.layers),
        values=tuple(layer.values[0] for layer in cache.layers),
        position_offset=len(soft.embeddings),
        fingerprint="",
    )


def read(data: bytes, media_type: str = "application/x-tar", tokens: int = 64) -> formats.Source:
    return formats.read(data, media_type, BASE, max_prefix_tokens=tokens).source


def directory(config: object, tensors: dict[str, Tensor]) -> bytes:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in ((peft.CONFIG, text), (peft.WEIGHTS, save(tensors))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
