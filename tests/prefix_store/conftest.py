from __future__ import annotations

import pytest
import torch

from prefix_store.prefix import BaseModelSpec, Prefix


@pytest.fixture
def base() -> BaseModelSpec:
    return BaseModelSpec(
        name="tiny",
        fingerprint="sha256:" + "ab" * 32,
        num_layers=2,
        num_kv_heads=2,
        head_dim=4,
        hidden_size=24,
        dtype="float32",
    )


@pytest.fixture
def prefix(base: BaseModelSpec) -> Prefix:
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn((2, base.num_layers, base.num_kv_heads, 3, base.head_dim), generator=generator)
    return Prefix(
        keys=tuple(kv[0]),
        values=tuple(kv[1]),
        position_offset=3,
        fingerprint=base.fingerprint,
        origin={"source_format": "text", "tool": "foreword"},
    )
