"""The benchmark's own logic, in Triton's interpreter: what it measures means nothing."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")

from server.engine.attention.triton import TritonBackend
from tests.gpu.benchmarks import attention


def test_it_gives_numbers_and_reads_the_prefix_once_or_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_groups = []
    plan = TritonBackend.plan
    monkeypatch.setattr(
        TritonBackend,
        "plan",
        lambda self, step: (num_groups.append(len(step.groups)), plan(self, step)),
    )

    result = dict(attention.run(attention.TINY))

    assert json.loads(json.dumps(result)) == result
    assert len(result) == 1 + 2 * 2 * 2
    assert num_groups == [1, 1, 1, 1, 1, 2, 1, 2]
