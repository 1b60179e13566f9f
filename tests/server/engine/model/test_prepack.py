from __future__ import annotations

import pytest
import torch
from torch import nn

from server.engine.model.prepack import PrepackedLinear, prepack
from tests.tiny_models import build_model


def test_a_prepacked_model_returns_the_same_logits() -> None:
    model = build_model("llama", "eager").to(torch.bfloat16)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        expected = model(ids).logits.float()

        num_packed = prepack(model)

        got = model(ids).logits.float()
    if not num_packed:
        pytest.skip("this processor has no prepacked bfloat16 linears; the model is untouched")
    assert num_packed == 3 * 7 + 1
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_float32_model_is_not_changed() -> None:
    assert prepack(build_model("llama", "eager")) == 0


def test_prepacked_linears_that_disagree_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama", "eager").to(torch.bfloat16)
    monkeypatch.setattr(PrepackedLinear, "forward", lambda self, x: x @ torch.zeros(64, 1).to(x))

    assert prepack(model) == 0
    assert type(model.lm_head) is nn.Linear
