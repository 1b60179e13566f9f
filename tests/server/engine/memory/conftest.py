"""Residencies for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from torch import Tensor

from prefix_store.digest import Digest
from server.engine.memory.prefix import ResidentPrefix
from tests.server.engine.memory.harness import SIZE, ResidencyHarness, read


@pytest.fixture
def make_harness() -> Iterator[Callable[..., ResidencyHarness]]:
    made: list[ResidencyHarness] = []

    def make(
        load: Callable[[Digest], ResidentPrefix] = read,
        *,
        device: int = 2,
        host: int = 1,
        copy: Callable[[Tensor], Tensor] | None = None,
    ) -> ResidencyHarness:
        made.append(ResidencyHarness(load, device * SIZE, host * SIZE, copy))
        return made[-1]

    yield make
    for each in made:
        each.residency.close()
