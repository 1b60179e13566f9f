from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from torch import Tensor

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


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        ({}, {}),
        ({"max_new_tokens": 9}, {"max_tokens": 9}),
        ({"do_sample": True, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20}, {"temperature": 0.6, "top_k": 20}),
    ],
)
def test_a_generation_config_gives_defaults(
    model_dir: Path, tmp_path: Path, config: dict[str, float], defaults: dict[str, float]
) -> None:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps(config))

    assert loaded(tmp_path).generation_defaults == defaults


def test_the_fingerprint_does_not_depend_on_the_serving_dtype(model_dir: Path) -> None:
    assert loaded(model_dir).spec.fingerprint == loaded(model_dir, "bfloat16").spec.fingerprint


def test_other_weights_have_another_fingerprint() -> None:
    model = build_model("llama", "eager")
    before = fingerprint(model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.05)

    assert fingerprint(model) != before


def test_a_family_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    T.BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=2, n_head=4).save_pretrained(tmp_path)

    with pytest.raises(UnsupportedModel, match="bloom"):
        loaded(tmp_path)


# --- incomplete checkpoints ---


def changed(path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Save a tiny Llama with changed weights in its file."""
    build_model("llama", "eager").save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def test_missing_weights_are_named(tmp_path: Path) -> None:
    def without(weights: dict[str, Tensor]) -> None:
        for name in ("layers.1.mlp.up_proj", "layers.2.mlp.up_proj"):
            del weights[f"model.{name}.weight"]

    with pytest.raises(UnsupportedModel, match=r"lacks model.layers.1.mlp.up_proj.* and 1 more"):
        loaded(changed(tmp_path, without))


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    def cut(weights: dict[str, Tensor]) -> None:
        weights["model.norm.weight"] = torch.ones(63)

    with pytest.raises(UnsupportedModel, match=r"shape: model.norm.weight \(63,\) for \(64,\)"):
        loaded(changed(tmp_path, cut))


def test_unused_weights_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def more(weights: dict[str, Tensor]) -> None:
        weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)

    loaded(changed(tmp_path, more))

    assert "q_proj.bias" in caplog.text


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIGS["llama"])
    config.tie_word_embeddings = True
    model = T.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")

    head = loaded(tmp_path).model.get_output_embeddings()

    assert torch.equal(head.weight, model.model.embed_tokens.weight)


def test_a_file_that_is_not_a_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    build_model("llama", "eager").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")

    with pytest.raises(UnsupportedModel, match="llama is not supported: it cannot be loaded"):
        loaded(tmp_path)


def test_the_measured_geometry_of_every_family_matches_its_config(tmp_path: Path) -> None:
    for family in CONFIGS:
        build_model(family, "eager").save_pretrained(tmp_path / family)

        spec = loaded(tmp_path / family).spec

        assert spec.num_layers == 3, family
        assert spec.num_bytes_per_token == 2 * 3 * spec.num_kv_heads * spec.head_dim * 4
