"""Decisions by the config alone: which families are refused, and the context of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as T

from server.engine.model.families import (
    UnsupportedModel,
    check_supported,
    context_of,
    read_config,
    refusing,
)
from tests.tiny_models import CONFIGS, VOCAB

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
TEXT = SIZES | {"num_key_value_heads": 2, "head_dim": 16}
STATES = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "num_local_experts": 0,
    "num_experts_per_tok": 0,
}  # fmt: skip
IMAGES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
REFUSED = {
    "bart": (T.BartConfig(), "encoder-decoder"),
    "mbart": (T.MBartConfig(), "encoder-decoder"),
    "pegasus": (T.PegasusConfig(), "encoder-decoder"),
    "marian": (T.MarianConfig(), "encoder-decoder"),
    "t5": (T.T5Config(), "encoder-decoder"),
    "bert": (T.BertConfig(), "encoder"),
    "roberta": (T.RobertaConfig(), "encoder"),
    "vit": (T.ViTConfig(), "token by token"),
    "mamba": (T.MambaConfig(), "state"),
    "falcon_h1": (T.FalconH1Config(), "state"),
    "lfm2": (T.Lfm2Config(layer_types=["full_attention", "conv"], num_hidden_layers=2), "state"),
    "falcon": (T.FalconConfig(), "attention interface"),
    "gptj": (T.GPTJConfig(), "attention interface"),
    "gpt_neo": (T.GPTNeoConfig(), "attention interface"),
    "gemma3": (T.Gemma3Config(text_config=TEXT, vision_config=IMAGES), "more than text"),
}


@pytest.mark.parametrize("family", REFUSED)
def test_an_unsupported_family_is_refused_in_a_sentence_by_its_config(
    family: str, tmp_path: Path
) -> None:
    """The folder has no weights."""
    config, reason = REFUSED[family]
    config.save_pretrained(tmp_path)

    with pytest.raises(
        UnsupportedModel, match=f"^{family} is not supported: .*{reason}"
    ) as message:
        check_supported(read_config(str(tmp_path)))

    assert "\n" not in str(message.value)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    config = CONFIGS["llama"].to_dict() | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(UnsupportedModel, match="quantized"):
        check_supported(read_config(str(tmp_path)))


def test_a_hybrid_family_without_states_is_served() -> None:
    attention = T.GraniteMoeHybridConfig(**SIZES, **STATES, layer_types=["full_attention"] * 2)
    mixed = T.GraniteMoeHybridConfig(
        **SIZES, **STATES, layer_types=["full_attention", "linear_attention"]
    )

    check_supported(attention)
    with pytest.raises(UnsupportedModel, match="state"):
        check_supported(mixed)


@pytest.mark.parametrize("family", CONFIGS)
def test_supported_families_pass(family: str) -> None:
    check_supported(CONFIGS[family])

    assert context_of(CONFIGS[family]).num_tokens == 256
    assert context_of(CONFIGS[family]).limited_by is None


def test_a_config_of_an_unknown_family_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody_knows"}')

    with pytest.raises(UnsupportedModel, match="nobody_knows") as message:
        read_config(str(tmp_path))

    assert "\n" not in str(message.value)
    with pytest.raises(OSError, match="nothing"):
        read_config(str(tmp_path / "nothing"))


def test_any_error_of_a_familys_code_becomes_a_sentence() -> None:
    config = CONFIGS["llama"]
    message = r"llama is not supported: it fails \(KeyError: 'x'"
    with pytest.raises(UnsupportedModel, match=message), refusing(config, "it fails"):
        {}["x"]
    with pytest.raises(OSError, match="disk"), refusing(config, "it fails"):
        raise OSError("disk")


# --- context length ---

ROPE = {"rope_theta": 10000.0}
LONG = {
    **ROPE, "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {**ROPE, "rope_type": "dynamic", "factor": 2.0}


@pytest.mark.parametrize(
    ("config", "num_tokens", "why"),
    [
        (
            T.Phi3Config(
                **TEXT, pad_token_id=0, rope_parameters=LONG, original_max_position_embeddings=32
            ),
            32,
            "LongRoPE",
        ),
        (T.LlamaConfig(**TEXT, rope_parameters=LONG), 32, "LongRoPE"),
        (
            T.Llama4TextConfig(
                **TEXT, attention_chunk_size=64, attn_temperature_tuning=False, pad_token_id=0
            ),
            64,
            "chunks",
        ),
        (
            T.Llama4TextConfig(
                **TEXT, attention_chunk_size=64, attn_temperature_tuning=True, floor_scale=40,
                pad_token_id=0,
            ),
            39,
            "index in the batch",
        ),
        # Dynamic RoPE changes only after the last position; Ministral scales each token by itself.
        (T.LlamaConfig(**TEXT, rope_parameters=DYNAMIC), 256, ""),
        (T.Ministral3Config(**TEXT), 256, ""),
    ],
)  # fmt: skip
def test_the_context_ends_where_one_request_would_change_another(
    config: T.PretrainedConfig, num_tokens: int, why: str
) -> None:
    context = context_of(config)

    assert context.num_tokens == num_tokens
    assert (context.limited_by is not None) == bool(why)
    assert why in (context.limited_by or "")
