"""Which model families the engine serves, how far their context reaches, and why the others are
refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    PretrainedConfig,
)


class UnsupportedModel(Exception):
    """This model cannot be served. The message is one sentence that says why."""

    @classmethod
    def because(cls, config: PretrainedConfig, reason: str) -> UnsupportedModel:
        return cls(f"{config.model_type} is not supported: {reason}")


OWN_ATTENTION = "its attention does not go through transformers' attention interface"
_LATENT_CACHE = "its cache is a compressed latent, not keys and values"
_SHARED_KV = "its layers share keys and values"
_REFUSED = {
    **dict.fromkeys(
        ("bloom", "codegen", "falcon", "gpt_neo", "gptj", "mpt", "xglm"), OWN_ATTENTION
    ),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _LATENT_CACHE),
    **dict.fromkeys(("gemma3n_text", "gemma4_text"), _SHARED_KV),
}
_ATTENTION_LAYERS = {"attention", "full_attention", "sliding_attention", "chunked_attention"}


def read_config(path: str) -> PretrainedConfig:
    """Of a folder or a hub id. Raises `UnsupportedModel`, and OSError where there is no model."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except OSError:
        raise
    except Exception as exc:  # transformers' own words: of a config that it cannot read
        raise UnsupportedModel(f"the model's config cannot be read: {first_line(exc)}") from exc


def check_supported(config: PretrainedConfig) -> None:
    """Raises `UnsupportedModel` for what its config shows not to work, before weights are read."""
    with refusing(config, "its config cannot be understood"):
        reason = _reason(config)
    if reason is not None:
        raise UnsupportedModel.because(config, reason)


def _reason(config: PretrainedConfig) -> str | None:
    text = config.get_text_config()
    if config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if text is not config:
        return "it takes more than text (save its language model as a model of its own)"
    if getattr(config, "quantization_config", None) is not None:
        return "its weights are quantized (save them as bfloat16 or float32)"
    if config.model_type in _REFUSED:
        return _REFUSED[config.model_type]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "it does not generate text token by token"
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        return "it is an encoder, which does not generate text token by token"
    if _keeps_state(config):
        return "it keeps a state beside keys and values"
    return None


def _keeps_state(config: PretrainedConfig) -> bool:
    """Recurrent layers and convolutions, alone or between layers of attention. A hybrid family's
    config may have none of them."""
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds:
        return not _ATTENTION_LAYERS.issuperset(kinds)
    return bool(getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False))


@contextmanager
def refusing(config: PretrainedConfig, what: str) -> Iterator[None]:
    """Whatever a family's code raises where others run is a refusal in one sentence, not a
    traceback: there are hundreds of families, and they fail in ways of their own."""
    try:
        yield
    except (UnsupportedModel, OSError):
        raise
    except Exception as exc:
        said = f"{what} ({type(exc).__name__}: {first_line(exc)})"
        raise UnsupportedModel.because(config, said) from exc


def first_line(exc: BaseException) -> str:
    """transformers' errors hold paragraphs."""
    said = str(exc).strip().splitlines()
    return said[0] if said else repr(exc)


# --- how far the context reaches ---


@dataclass(frozen=True, slots=True)
class Context:
    """How many tokens a sequence can have, prefix and prompt together."""

    num_tokens: int
    why_shorter: str | None = None
    """Where the model's positions reach further: what changes there."""


def context_of(config: PretrainedConfig) -> Context:
    """As far as a token's result does not depend on what else is in its batch.

    Some families compute all tokens of a forward otherwise once one of them stands beyond some
    position, which is right only if all of them belong to one sequence. Raises `UnsupportedModel`.
    """
    num_positions = _max_positions(config)
    limits = [Context(num_positions), *_limits(config)]
    return min(limits, key=lambda limit: limit.num_tokens)


def _limits(config: PretrainedConfig) -> Iterator[Context]:
    for rope in _ropes(config):
        # Dynamic RoPE changes where the positions end (`max_position_embeddings`).
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and original:
            yield Context(original, "LongRoPE rotates all tokens of a batch by other factors")
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        yield Context(config.attention_chunk_size, "its layers attend in chunks")
    if getattr(config, "attn_temperature_tuning", False):
        # The factor is 1 as long as floor((position + 1) / floor_scale) is 0.
        yield Context(config.floor_scale - 1, "its attention is scaled by the place in the batch")


def _ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Of all layers, or of each kind of layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, dict)] or [rope]


def _max_positions(config: PretrainedConfig) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UnsupportedModel.because(config, "its config does not say how long its context is")
