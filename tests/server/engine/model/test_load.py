from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as T

from server.engine.attention.ref import RefBackend
from server.engine.model.families import UnsupportedModel
from server.engine.model.fingerprint import fingerprint
from server.engine.model.load import LoadedModel, load
from tests.tiny_models import CONFIGS, VOCAB, build_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3, whose head_dim is not hidden_size / num_heads, stored in bfloat16."""
    path = tmp_path_factory.mktemp("qwen3")
    build_model("qwen3", "eager").to(torch.bfloat16).save_pretrained(path)
    return path


def loaded(path: Path, dtype: str = "float32") -> LoadedModel:
    return load(str(path), dtype=dtype, device="cpu", backend=RefBackend())


def test_the_geometry_is_measured(model_dir: Path) -> None:
    model = loaded(model_dir)

    assert (model.spec.num_layers, model.spec.num_kv_heads, model.spec.head_dim) == (3, 2, 24)
    assert (model.spec.hidden_size, model.vocab_size, model.max_positions) == (64, VOCAB, 256)
    assert model.eos_token_ids == (2,)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_a_model_has_one_fingerprint_in_whatever_dtype_it_is_served(model_dir: Path) -> None:
    assert loaded(model_dir).spec.fingerprint == loaded(model_dir, "bfloat16").spec.fingerprint


def test_other_weights_have_another_fingerprint() -> None:
    model = build_model("llama", "eager")
    before = fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.05)

    assert fingerprint(model) != before


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T.BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4), "bloom"),
        (T.T5Config(vocab_size=VOCAB, d_model=64, d_kv=16, d_ff=96, num_layers=2), "T5|encoder"),
    ],
)
def test_a_family_that_cannot_be_served_is_refused_by_name(
    config: T.PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    model_class = T.T5ForConditionalGeneration if config.is_encoder_decoder else T.BloomForCausalLM
    model_class(config).save_pretrained(tmp_path)

    with pytest.raises((UnsupportedModel, ValueError), match=reason):
        loaded(tmp_path)


def test_every_served_family_is_measured_as_its_config_says(tmp_path: Path) -> None:
    for family in CONFIGS:
        build_model(family, "eager").save_pretrained(tmp_path / family)

        spec = loaded(tmp_path / family).spec

        assert spec.num_layers == 3, family
        assert spec.num_bytes_per_token == 2 * 3 * spec.num_kv_heads * spec.head_dim * 4
