"""The model families that the engine serves, the length of their context, and why others are
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
    """The model cannot be served. The message is one sentence that says why."""

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
    """Read the config of a model folder or hub id.

    Raises `UnsupportedModel` if it is invalid, and OSError if there is no model.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except OSError:
        raise
    except Exception as exc:  # transformers raises many types for a config that it cannot read
        raise UnsupportedModel(f"the model's config cannot be read: {first_line(exc)}") from exc


def check_supported(config: PretrainedConfig) -> None:
    """Raise `UnsupportedModel` if the config alone shows that the model cannot be served."""
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
        return "it keeps a state besides keys and values"
    return None


def _keeps_state(config: PretrainedConfig) -> bool:
    """Return whether some layers are recurrent or convolutions.

    The config of a hybrid family may contain attention layers only.
    """
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds:
        return not _ATTENTION_LAYERS.issuperset(kinds)
    return bool(getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], "_is_stateful", False))


@contextmanager
def refusing(config: PretrainedConfig, what: str) -> Iterator[None]:
    """Turn any error of a family's code into `UnsupportedModel`, except OSError.

    There are hundreds of families, and each can fail differently: the user gets one sentence
    instead of a traceback. `what` begins the sentence.
    """
    try:
        yield
    except (UnsupportedModel, OSError):
        raise
    except Exception as exc:
        message = f"{what} ({type(exc).__name__}: {first_line(exc)})"
        raise UnsupportedModel.because(config, message) from exc


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's message: those of transformers have paragraphs."""
    message = str(exc).strip().splitlines()
    return message[0] if message else repr(exc)


# --- context length ---


@dataclass(frozen=True, slots=True)
class Context:
    """The maximum number of tokens of a sequence: prefix, prompt and completion."""

    num_tokens: int
    limited_by: str | None = None
    """What changes after `num_tokens`, if the model has more positions than that."""


def context_of(config: PretrainedConfig) -> Context:
    """Return the context within which a token's result does not depend on the rest of its batch.

    Some families change the computation of all tokens of a forward once one of them is past a
    certain position, which is correct only if all belong to one sequence.

    Raises `UnsupportedModel` if the config does not say how many positions there are.
    """
    num_positions = _max_positions(config)
    limits = [Context(num_positions), *_limits(config)]
    return min(limits, key=lambda limit: limit.num_tokens)


def _limits(config: PretrainedConfig) -> Iterator[Context]:
    for rope in _ropes(config):
        # Dynamic RoPE changes only after `max_position_embeddings`, which is a limit anyway.
        original = rope.get("original_max_position_embeddings")
        if rope.get("rope_type") == "longrope" and original:
            yield Context(original, "LongRoPE changes the rotation of all tokens of a batch")
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        yield Context(config.attention_chunk_size, "its layers attend in chunks")
    if getattr(config, "attn_temperature_tuning", False):
        # The factor is 1 as long as floor((index + 1) / floor_scale) is 0.
        yield Context(config.floor_scale - 1, "its attention is scaled by the index in the batch")


def _ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """Return the RoPE parameters: one dict for all layers, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in rope.values() if isinstance(each, dict)] or [rope]


def _max_positions(config: PretrainedConfig) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UnsupportedModel.because(config, "its config does not say how long its context is")
