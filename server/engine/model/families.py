"""Which model families the engine serves, and why the others are refused."""

from __future__ import annotations

from transformers import PretrainedConfig


class UnsupportedModel(Exception):
    """This model cannot be served. The message says why."""


_REFUSED = {
    "bloom": "its attention does not go through transformers' attention interface",
    "codegen": "its attention does not go through transformers' attention interface",
    "falcon": "its attention does not go through transformers' attention interface",
    "gpt_neo": "its attention does not go through transformers' attention interface",
    "gptj": "its attention does not go through transformers' attention interface",
    "mpt": "its attention does not go through transformers' attention interface",
    "xglm": "its attention does not go through transformers' attention interface",
    "deepseek_v2": "its cache is a compressed latent, not keys and values",
    "deepseek_v3": "its cache is a compressed latent, not keys and values",
    "gemma3n_text": "its layers share keys and values",
    "gemma4_text": "its layers share keys and values",
}


def check_supported(config: PretrainedConfig) -> None:
    """Raises `UnsupportedModel` for families that are known not to work."""
    if config.is_encoder_decoder:
        raise UnsupportedModel("encoder-decoder models are not supported yet")
    if (reason := _REFUSED.get(config.model_type)) is not None:
        raise UnsupportedModel(f"{config.model_type} is not supported: {reason}")


def max_positions(config: PretrainedConfig) -> int:
    """How many tokens the model's positions reach; prefix and prompt share them."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UnsupportedModel(f"{config.model_type} does not say how long its context is")
