"""A model folder that a server loads in a moment: random weights, a token for each byte."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.server.fakes import make_transformers_tokenizer


def save_small_model(
    folder: Path, *, num_layers: int = 2, head_dim: int = 8, max_len: int = 20_000
) -> Path:
    """Steps are quick, a context of `max_len` takes minutes to fill, and every token depends on
    those before it. Keys and values of a token take 16 * `num_layers` * `head_dim` bytes."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=num_layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim,
        max_position_embeddings=max_len,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15, generator=generator)
    model.save_pretrained(folder)
    make_transformers_tokenizer().save_pretrained(folder)
    return folder
