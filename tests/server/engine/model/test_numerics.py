from __future__ import annotations

import pytest
import torch

from server.engine.model.numerics import agree


@pytest.mark.parametrize(
    ("got", "agrees"), [(1.0, True), (1.009, True), (1.02, False), (float("nan"), False)]
)
def test_results_agree_up_to_the_limit(got: float, agrees: bool) -> None:
    assert agree(torch.ones(3), torch.full((3,), got), 0.01) == agrees


def test_zeros_agree_with_zeros_only() -> None:
    zeros = torch.zeros(3)

    assert agree(zeros, zeros, 0.01)
    assert not agree(zeros, torch.full((3,), 1e-9), 0.01)
