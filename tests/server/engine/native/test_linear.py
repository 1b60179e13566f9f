"""Compiled linears of all sizes, against those of torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from server.engine.native.linear import NativeLinear
from server.engine.native.team import ThreadTeam

pytestmark = pytest.mark.usefixtures("compiled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 70])
def test_a_linear_of_any_size_equals_that_of_torch(num_rows: int, dtype: torch.dtype) -> None:
    team = ThreadTeam(2)
    if not team.supports(dtype):
        pytest.skip(f"this processor does not multiply {dtype}")
    torch.manual_seed(num_rows)
    for in_features, out_features in ((64, 96), (70, 33), (96, 48)):
        linear = nn.Linear(in_features, out_features).to(dtype)
        x = torch.randn(1, num_rows, in_features, dtype=dtype)
        with torch.inference_mode():
            expected, got = linear(x).float(), NativeLinear(linear, team)(x).float()
        tolerance = 1e-5 if dtype is torch.float32 else 0.02
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_rows", [1, 3, 8, 21])
def test_an_int8_linear_equals_one_with_rounded_weights(num_rows: int) -> None:
    torch.manual_seed(num_rows)
    linear = nn.Linear(96, 112)
    scales = linear.weight.abs().amax(1, keepdim=True) / 127
    rounded = (linear.weight / scales).round() * scales
    x = torch.randn(1, num_rows, 96)
    native = NativeLinear(linear, ThreadTeam(2), int8=True)

    expected = torch.nn.functional.linear(x, rounded, linear.bias)

    torch.testing.assert_close(native(x), expected, atol=1e-5, rtol=0)
    exact = torch.nn.functional.linear(x, linear.weight, linear.bias)
    assert not torch.allclose(native(x), exact, atol=1e-5, rtol=0)
