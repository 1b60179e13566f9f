"""The Triton kernels against the oracle: compiled on CUDA, otherwise interpreted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from server.engine.attention.ref import RefBackend
from server.engine.attention.work_list import WorkList, work_list
from tests.attention_cases import CASES, Attention, Case, attend

pytest.importorskip("triton")

from server.engine.attention import triton as backend_module
from server.engine.attention.triton import TritonBackend


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_pool_equal_the_oracles(case: Case) -> None:
    attention = Attention(case)
    expected, expected_pool = attention.run(RefBackend())

    got, pool = attention.run(TritonBackend(min_keys=case.min_keys))

    atol = 2e-6 if case.dtype == "float32" else 2e-3
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)
    torch.testing.assert_close(pool, expected_pool, atol=0, rtol=0, equal_nan=True)


Items = NDArray[np.int64]


def without_causality(items: Items) -> Items:
    items[:, 8] = 0
    return items


def without_order(items: Items) -> Items:
    """Write all partial results of a row to one place: the merge sees only the last."""
    items[:, 9] = 0
    return items


def without_offset(items: Items) -> Items:
    """Let the window ignore that a prefix comes first."""
    items[:, 7] = 0
    return items


def without_prefix(items: Items) -> Items:
    items[:, 6] = np.where(items[:, 1] > 0, items[:, 5], items[:, 6])
    return items


@pytest.mark.parametrize(
    ("change", "case"),
    [
        (without_causality, Case(tasks=((3, [(5, 2)]),))),
        (without_order, Case(tasks=((3, [(2, 2)]),))),
        (without_offset, Case(tasks=((3, [(5, 2)]),), window=4)),
        (without_prefix, Case(tasks=((3, [(5, 2)]),))),
    ],
    ids=["without_causality", "without_order", "without_offset", "without_prefix"],
)
def test_a_wrong_work_list_is_noticed(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Items], Items], case: Case
) -> None:
    """Control of the test above."""
    attention = Attention(case)
    expected, _ = attention.run(RefBackend())

    def tampered(*args: Any) -> WorkList:
        work = work_list(*args)
        return replace(work, items=change(work.items))

    monkeypatch.setattr(backend_module, "work_list", tampered)

    got, _ = attention.run(TritonBackend(min_keys=8))

    assert not (got - expected).abs().max() < 1e-2


def test_rows_past_the_step_write_nothing_and_return_zeros() -> None:
    attention = Attention(Case(tasks=((5, [(1, 3), (2, 0)]),)))
    expected, expected_pool = attention.run(TritonBackend())

    got, pool = attention.run(TritonBackend(), num_rows=7)

    assert torch.equal(got[:3], expected)
    assert torch.equal(got[3:], torch.zeros_like(got[3:]))
    torch.testing.assert_close(pool, expected_pool, atol=0, rtol=0, equal_nan=True)


def test_a_forward_before_any_step_returns_zeros() -> None:
    attention = Attention(Case(tasks=((5, [(1, 3)]),)))
    backend, pool = TritonBackend(), attention.pool()
    backend.allocate(pool, attention.case.capacity)

    out = attend(attention, backend, 4)

    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(pool.pages, torch.zeros_like(pool.pages))


def test_a_smaller_step_overwrites_all_of_the_previous_one() -> None:
    large, small = Attention(Case()), Attention(Case(tasks=((4, [(1, 2)]),)))
    expected, _ = small.run(TritonBackend())
    backend, pool = TritonBackend(), small.pool_before_the_step()
    backend.allocate(pool, small.case.capacity)

    backend.plan(large.step)
    backend.plan(small.step)
    got = attend(small, backend, 4)

    assert torch.equal(got[:1], expected)
    assert torch.equal(got[1:], torch.zeros_like(got[1:]))
