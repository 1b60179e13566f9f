"""Tiny random base models of several families in folders, with a tokenizer of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T

from foreword_tuner.methods import DEFAULTS, Method
from foreword_tuner.settings import Settings
from tests.server.fakes import make_transformers_tokenizer

CITIES = [("Paris", "France"), ("Rome", "Italy"), ("Oslo", "Norway"), ("Bern", "Swiss")]
QUICK = [
    "--dtype",
    "float32",
    "--batch-tokens",
    "64",
    "--held-out",
    "0.25",
    "--virtual-tokens",
    "4",
]
_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def save_base(folder: Path, family: str = "llama", *, bos: bool = False) -> Path:
    """A model whose prefixes have a visible effect."""
    tokenizer = make_transformers_tokenizer(bos=bos)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = _model(family, {"vocab_size": len(tokenizer), "pad_token_id": 0, **ids})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _model(family: str, common: dict[str, Any]) -> Any:
    gqa = _SIZES | common | {"num_key_value_heads": 2}
    match family:
        case "llama":
            return T.LlamaForCausalLM(T.LlamaConfig(**gqa))
        case "qwen3":
            return T.Qwen3ForCausalLM(T.Qwen3Config(**gqa, head_dim=16))
        case "gemma2":
            sizes = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
            return T.Gemma2ForCausalLM(T.Gemma2Config(**gqa, **sizes))
        case "mixtral":
            experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
            return T.MixtralForCausalLM(T.MixtralConfig(**gqa, **experts))
        case "gpt2":
            sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
            return T.GPT2LMHeadModel(T.GPT2Config(**sizes, **common))
        case "opt":
            sizes = _SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64}
            return T.OPTForCausalLM(T.OPTConfig(**sizes, **common))
        case "t5":
            sizes = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4}
            config = T.T5Config(**sizes, **common, decoder_start_token_id=0)
            return T.T5ForConditionalGeneration(config)
    raise AssertionError(family)


def settings(base: Path, method: Method = Method.PREFIX, **changed: Any) -> Settings:
    """Settings of a training that takes seconds, in float32."""
    fields: dict[str, Any] = {
        "base": str(base),
        "method": method,
        "num_virtual_tokens": 4,
        "projection": False,
        "init": "random",
        "first_layer": 0,
        "template": "{prompt}\n",
        "chat": False,
        "held_out": 0.25,
        "max_tokens": 128,
        "learning_rate": DEFAULTS[method].learning_rate,
        "warmup": 0.1,
        "weight_decay": 0.0,
        "clip": 1.0,
        "batch_tokens": 64,
        "accumulate": 1,
        "max_epochs": 4.0,
        "max_minutes": None,
        "eval_every": 5,
        "patience": 100,
        "dtype": "float32",
        "seed": 0,
    }
    return Settings(**fields | changed)


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def cities(path: Path, times: int = 8) -> Path:
    """Questions that differ, of a few answers."""
    lines = [
        {"prompt": f"{i} {city}", "completion": land} for i in range(times) for city, land in CITIES
    ]
    return write_lines(path, lines)


def run(command: object, *arguments: object) -> None:
    """Run a command of the tuner, which must succeed."""
    with pytest.raises(SystemExit) as ended:
        command([str(argument) for argument in arguments])  # type: ignore[operator]
    assert not ended.value.code
