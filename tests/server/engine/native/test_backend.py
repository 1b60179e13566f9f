"""Installation of the compiled layers: only where they compute the model."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as T
from torch import nn

from server.engine.native import backend as native
from server.engine.native import layers
from server.engine.native.backend import install
from server.engine.native.layers import NotLlamaLike
from tests import tiny_models
from tests.native_engine import SIZES, spec_of
from tests.tiny_models import build_model

pytestmark = pytest.mark.usefixtures("compiled")


def test_the_bare_forward_is_used_only_if_the_model_does_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model("llama", "foreword")
    forward = type(model).forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    assert install(model, spec_of(model), 1).bare_forward is not None
    monkeypatch.setattr(type(model), "forward", scaled)
    model = build_model("llama", "foreword")
    assert install(model, spec_of(model), 1).bare_forward is None


@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma2", "gemma3", "qwen3"])
def test_other_families_keep_their_own_layers(family: str) -> None:
    model = build_model(family, "foreword")
    before = [type(module) for module in model.modules()]

    with pytest.raises(NotLlamaLike):
        install(model, spec_of(model), 1)

    assert [type(module) for module in model.modules()] == before


UNLIKE_LLAMA = {
    # Angles for a quarter of a head, where the compiled layers would read those of all of it.
    "partial-rotary": T.StableLmConfig(
        **SIZES | {"hidden_size": 192, "num_attention_heads": 6}, head_dim=32,
        partial_rotary_factor=0.25,
    ),
    # Layers with experts instead of an `mlp`.
    "experts": T.GraniteMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip


@pytest.mark.parametrize("family", UNLIKE_LLAMA)
def test_another_structure_is_noticed_before_memory_is_read(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_models.CONFIGS, family, UNLIKE_LLAMA[family])
    model = build_model(family, "foreword")
    before = [type(module) for module in model.modules()]
    reached: list[str] = []
    layers_of = layers.NativeLayers.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        hidden = layers_of(self, *args, **kwargs)
        reached.append("the compiled call")
        return hidden

    monkeypatch.setattr(layers.NativeLayers, "forward", forward)
    with pytest.raises(NotLlamaLike, match=r"rotates 8 of 32|no mlp"):
        install(model, spec_of(model), 1)

    assert not reached
    assert [type(module) for module in model.modules()] == before


def test_an_error_of_any_kind_leaves_the_model_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise KeyError("no such angles")

    monkeypatch.setattr(layers.NativeLayers, "forward", fail)
    model = build_model("llama", "foreword")
    before = [type(module) for module in model.modules()]

    with pytest.raises(NotLlamaLike, match="KeyError: 'no such angles'"):
        install(model, spec_of(model), 1)

    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("is_in_config", [True, False])
def test_layers_are_also_compared_near_the_end_of_the_context(
    is_in_config: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ministral 3 scales queries after its original context, and the compiled layers do not. That
    is noticed by the config, and would be by the logits."""
    rope = {
        "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 128,
    }  # fmt: skip
    config = T.Ministral3Config(**SIZES, head_dim=16, rope_parameters=rope, sliding_window=None)
    monkeypatch.setitem(tiny_models.CONFIGS, "ministral3", config)
    if not is_in_config:
        monkeypatch.setattr(native, "_check_scaling", lambda *_: None)

    install(
        build_model("ministral3", "foreword"), tiny_models.spec_of(config), 1, max_model_len=128
    )
    reason = "from position 128 on" if is_in_config else "logits differ"
    with pytest.raises(NotLlamaLike, match=reason):
        install(
            build_model("ministral3", "foreword"), tiny_models.spec_of(config), 1, max_model_len=256
        )


def test_wrong_layers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the check at the start: gate and up exchanged."""
    interleave = layers._interleave
    monkeypatch.setattr(layers, "_interleave", lambda weights: interleave(weights[::-1]))
    model = build_model("llama", "foreword")

    with pytest.raises(NotLlamaLike, match="logits differ"):
        install(model, spec_of(model), 1)

    assert type(model.lm_head) is nn.Linear
