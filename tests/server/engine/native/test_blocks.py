"""Keys and values in blocks, and back."""

from __future__ import annotations

import pytest
import torch

from server.engine.native.blocks import from_blocks, to_blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 16, 37])
def test_blocks_convert_back_without_loss(num_tokens: int, dtype: torch.dtype) -> None:
    kv = torch.randn(3, 2, 2, num_tokens, 32).to(dtype)

    assert torch.equal(from_blocks(to_blocks(kv), num_tokens), kv)
