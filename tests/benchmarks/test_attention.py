"""The logic of the attention benchmark, in Triton's interpreter: its times mean nothing."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")

from server.engine.attention.triton import TritonBackend
from tests.gpu.benchmarks import attention


def test_results_are_numbers_and_the_prefix_is_read_once_or_per_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_shared = []
    plan = TritonBackend.plan
    monkeypatch.setattr(
        TritonBackend,
        "plan",
        lambda self, step: (num_shared.append(len(step.segments_beside_own())), plan(self, step)),
    )

    result = dict(attention.run(attention.TINY))

    assert json.loads(json.dumps(result)) == result
    assert len(result) == 1 + 2 * 2 * 2
    assert num_shared == [1, 1, 1, 1, 1, 2, 1, 2]
