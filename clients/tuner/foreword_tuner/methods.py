"""The methods that can be trained, and what was measured to be best for each (docs/tuning.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import peft
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class Method(StrEnum):
    """What is trained. All but LoRA become a prefix when they are served."""

    PREFIX = "prefix"
    CARTRIDGE = "cartridge"
    PROMPT = "prompt"
    PTUNING = "ptuning"
    LORA = "lora"

    @property
    def is_kv(self) -> bool:
        """Keys and values of every layer are the parameters."""
        return self in (Method.PREFIX, Method.CARTRIDGE)

    @property
    def is_servable(self) -> bool:
        return self is not Method.LORA


@dataclass(frozen=True, slots=True)
class Defaults:
    """For a method, where nothing is said."""

    learning_rate: float
    num_virtual_tokens: int = 20
    init: str = "random"


DEFAULTS = {
    Method.PREFIX: Defaults(learning_rate=0.1, init="examples"),
    Method.CARTRIDGE: Defaults(learning_rate=0.1, init="examples"),
    Method.PROMPT: Defaults(learning_rate=0.1, init="examples"),
    Method.PTUNING: Defaults(learning_rate=1e-3),
    Method.LORA: Defaults(learning_rate=1e-3, num_virtual_tokens=0),
}
PROJECTED = Defaults(learning_rate=1e-3)
"""Prefix tuning through the network of Li & Liang: what is trained are its weights."""

LORA_RANK = 8


def config(
    method: Method, model: PreTrainedModel, num_virtual_tokens: int, *, projection: bool
) -> peft.PeftConfig:
    """PEFT's description of what to train."""
    is_seq2seq = model.config.is_encoder_decoder
    common: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM" if is_seq2seq else "CAUSAL_LM"}
    if method is Method.LORA:
        return peft.LoraConfig(
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules="all-linear",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
            **common,
        )
    common["num_virtual_tokens"] = num_virtual_tokens
    width = model.get_input_embeddings().weight.shape[1]
    match method:
        case Method.PREFIX:
            return peft.PrefixTuningConfig(
                prefix_projection=projection, encoder_hidden_size=width, **common
            )
        case Method.CARTRIDGE:
            return peft.CartridgeConfig(**common)
        case Method.PROMPT:
            return peft.PromptTuningConfig(**common)
        case Method.PTUNING:
            return peft.PromptEncoderConfig(encoder_hidden_size=width, **common)
