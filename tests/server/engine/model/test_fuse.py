"""Fused modules equal those of transformers, and are not used if they do not."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as T
from torch import nn
from transformers import PreTrainedModel

from tests.tiny_models import build_model, make_engine, oracle, random_prefix, spec_of

pytest.importorskip("triton")

from server.engine.attention.ref import RefBackend
from server.engine.model import fuse_kernels
from server.engine.model.fuse import PackedOutput, Rotary, fuse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = {
    "llama": {"norm": 7, "mlp": 3, "qkv": 3, "rotary": 3},
    "qwen3": {"norm": 13, "mlp": 3, "qkv": 3, "rotary": 3},
    "gemma2": {"norm": 13, "mlp": 3, "qkv": 3, "rotary": 3},
    "opt": {"qkv": 3},
    "gpt2": {},
}


def logits_of(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(3, 14, device=DEVICE)[None]
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


@pytest.mark.parametrize("family", FUSED)
def test_a_fused_model_returns_the_same_logits(family: str) -> None:
    model = build_model(family, "eager").to(DEVICE)
    expected = logits_of(model)

    fused = fuse(model)

    assert dict(fused) == FUSED[family]
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=0)


def test_a_rotary_function_that_takes_other_angles_is_not_replaced() -> None:
    """gpt-oss has angles for half a head: its function fails on those of the trial."""
    config = T.GptOssConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0,
        num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.to(DEVICE)
    expected = logits_of(model)

    fused = fuse(model)

    assert fused["rotary"] == 0
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=0)


def test_the_engine_runs_a_fused_model() -> None:
    model, reference = build_model("llama", "foreword").to(DEVICE), build_model("llama", "eager")
    fuse(model)
    engine = make_engine(model, RefBackend(), page_size=4, num_pages=40)
    prefix = random_prefix(spec_of(model.config), 6, seed=6)
    engine.add(0, [5, 6, 7], prefix, 3)
    engine.add(1, [8, 9], None, 3)

    tokens = engine.run()

    assert tokens[0] == oracle(reference, [5, 6, 7], prefix, 3)[0]
    assert tokens[1] == oracle(reference, [8, 9], None, 3)[0]


def test_bfloat16_is_as_exact_as_before() -> None:
    exact = logits_of(build_model("llama", "eager").to(DEVICE))
    model = build_model("llama", "eager").to(DEVICE, torch.bfloat16)
    error = (logits_of(model) - exact).norm()

    fused = fuse(model)

    assert dict(fused) == FUSED["llama"]
    assert (logits_of(model) - exact).norm() < 1.2 * error


def test_another_model_of_the_family_keeps_its_own_rotary_embedding() -> None:
    model, other = build_model("llama", "eager").to(DEVICE), build_model("llama", "eager")

    fuse(model)

    name = "apply_rotary_pos_emb"
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.forward.__func__.__globals__[name], Rotary)
    assert "forward" not in vars(other.model.layers[0].self_attn)


class OddRMSNorm(nn.Module):
    """A layer norm with the name of an RMS norm: it also subtracts the mean."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(x, self.weight.shape, self.weight)


def test_a_module_that_computes_something_else_is_not_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build_model("llama", "eager").to(DEVICE)
    odd = OddRMSNorm(64).to(DEVICE)
    model.model.norm = odd
    expected = logits_of(model)

    fused = fuse(model)

    assert fused["norm"] == FUSED["llama"]["norm"] - 1
    assert model.model.norm is odd
    assert "not fusing OddRMSNorm: it computes something else" in caplog.text
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=0)


def test_a_module_is_not_replaced_if_the_kernel_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getitem__(self, grid: object) -> object:
            raise RuntimeError("no such instruction")

    monkeypatch.setattr(fuse_kernels, "gate", Broken())
    model = build_model("llama", "eager").to(DEVICE)
    expected = logits_of(model)

    fused = fuse(model)

    assert "mlp" not in fused
    assert "no such instruction" in caplog.text
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=0)


def test_a_gate_of_another_kind_is_not_replaced() -> None:
    model = build_model("llama", "eager").to(DEVICE)
    model.model.layers[0].mlp.act_fn = nn.ReLU()

    fused = fuse(model)

    assert fused["mlp"] == 2


def test_packed_outputs_can_be_called_in_any_order_and_keep_no_tensor() -> None:
    model = build_model("llama", "eager").to(DEVICE)
    plain = copy.deepcopy(model.model.layers[0].self_attn)
    fuse(model)
    packed = model.model.layers[0].self_attn
    one, other = torch.randn(2, 1, 2, 64, device=DEVICE)

    for name, x in (
        ("v_proj", one), ("q_proj", one), ("q_proj", one),
        ("k_proj", other), ("v_proj", other), ("q_proj", other),
    ):  # fmt: skip
        torch.testing.assert_close(getattr(packed, name)(x), getattr(plain, name)(x))

    assert isinstance(packed.q_proj, PackedOutput)
    assert packed.q_proj._shared == {}
