"""Comparison of results that are equal except for rounding."""

from __future__ import annotations

import torch
from torch import Tensor

MODULE_LIMITS = {torch.float32: 1e-4, torch.float16: 0.005, torch.bfloat16: 0.02}
"""Maximum relative error of the output of one module, by dtype."""
MODEL_LIMITS = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Maximum relative error of a model's logits, by dtype."""
ANY_LIMIT = 0.25
"""Maximum relative error of logits for any reason, such as 8-bit weights. One wrong layer causes an
error of 1 or more."""


def relative_error(expected: Tensor, got: Tensor) -> float:
    """Return the norm of the difference over the norm of `expected`; NaN if either has one."""
    expected, got = expected.float(), got.float()
    return float((expected - got).norm() / expected.norm())


def agree(expected: Tensor, got: Tensor, limit: float) -> bool:
    """Return whether the relative error is at most `limit`. NaN never agrees; zeros agree."""
    expected, got = expected.float(), got.float()
    return bool((expected - got).norm() <= limit * expected.norm())
