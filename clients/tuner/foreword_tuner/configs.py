"""PEFT configs of the methods."""

from __future__ import annotations

from typing import Any

import peft
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from foreword_tuner.methods import Method

LORA_RANK = 8


def config_of(
    method: Method, model: PreTrainedModel, num_virtual_tokens: int, *, projection: bool
) -> peft.PeftConfig:
    """Make the PEFT config of a method for a model."""
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
