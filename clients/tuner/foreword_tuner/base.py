"""The frozen base model with our attention, and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from foreword_tuner.attention import SharedPrefixAttention
from foreword_tuner.errors import TunerError
from foreword_tuner.settings import DType


@dataclass(frozen=True, slots=True)
class Base:
    """A base model as training uses it."""

    name: str
    model: PreTrainedModel
    tokenizer: Any
    attention: SharedPrefixAttention | None
    """None for an encoder-decoder, which runs with PEFT's own forward."""
    eos_id: int
    pad_id: int


def load(name: str, dtype: DType) -> Base:
    """Load a base model from a folder or a hub id. Raises `TunerError`."""
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        attention = None if config.is_encoder_decoder else SharedPrefixAttention()
        kind = AutoModelForCausalLM if attention else AutoModelForSeq2SeqLM
        options = {"attn_implementation": attention.name} if attention else {}
        model, found = kind.from_pretrained(
            name, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
    except Exception as exc:  # each family fails to load in its own way
        said = str(exc).strip().splitlines()
        reason = said[0] if said else repr(exc)
        raise TunerError(f"cannot load the base model {name}: {reason}") from None
    if missing := sorted(found["missing_keys"]):  # transformers initialized them at random
        raise TunerError(f"the base model {name} lacks the weights {missing[0]}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().requires_grad_(requires_grad=False).to(device)
    eos_id = _eos_id(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_id
    return Base(name, model, tokenizer, attention, eos_id, pad_id)


def _eos_id(model: PreTrainedModel, tokenizer: Any) -> int:
    """Return the token that ends an answer. The server reads the same field. Raises
    `TunerError`."""
    found = model.generation_config.eos_token_id if model.generation_config else None
    if found is None:
        found = tokenizer.eos_token_id
    if isinstance(found, list):
        found = found[0] if found else None
    if found is None:
        raise TunerError("the base model has no end-of-sequence token")
    return int(found)
