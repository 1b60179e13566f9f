"""The compiled layers attend to a prefix and own keys, and refuse steps with anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from server.engine.attention.base import Segment, UnsupportedSegment
from server.engine.native.backend import NativeBackend
from tests.attention_cases import Attention, Case
from tests.native_engine import native_engine

pytestmark = pytest.mark.usefixtures("compiled")

STEP = Attention(Case(tasks=((0, [(1, 9)]), (21, [(9, 6), (1, 0)]), (3, [(1, 17)])))).step
"""Prefixes of 21 and 3 tokens over rows 1 to 10 and row 11, then own keys of four sequences."""
KV = torch.zeros(2, 2, 2, 8, 16)
ENCODER = Segment(1, 10, 8, None, False, KV)


@pytest.fixture(scope="module")
def backend() -> NativeBackend:
    backend = native_engine("llama", 1).runner.parts.backend
    assert isinstance(backend, NativeBackend)
    return backend


def prefix_and(**changes: Any) -> Callable[[list[Segment]], list[Segment]]:
    return lambda segments: [segments[0]._replace(**changes), *segments[1:]]


def own_and(**changes: Any) -> Callable[[list[Segment]], list[Segment]]:
    return lambda segments: [*segments[:-1], segments[-1]._replace(**changes)]


REFUSED: dict[str, Callable[[list[Segment]], list[Segment]]] = {
    "a third segment": lambda segments: [ENCODER, *segments],
    "two prefixes of a row": lambda segments: [segments[0], *segments],
    "a prefix with a bias": prefix_and(bias=torch.zeros(21)),
    "a prefix without positions": prefix_and(first_position=None),
    "a prefix at other positions": prefix_and(first_position=1),
    "a prefix of another length": prefix_and(num_keys=20),
    "a prefix in pages": prefix_and(kv=None, pages=[0]),
    "a prefix from the middle of a sequence on": prefix_and(begin=2),
    "a prefix to the middle of a sequence": prefix_and(end=9),
    "a prefix of rows past the step": lambda segments: [
        segments[0],
        segments[1]._replace(end=13),
        *segments[2:],
    ],
    "own keys with a bias": own_and(bias=torch.zeros(18)),
    "own keys in a tensor": own_and(kv=KV),
    "own keys at other positions": own_and(first_position=0),
    "own keys of another sequence": own_and(pages=[0, 1, 2, 3, 4]),
    "a key less": own_and(num_keys=17),
    "no own keys": lambda segments: segments[:-1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_of_another_kind_is_refused_before_it_runs(
    name: str, backend: NativeBackend
) -> None:
    step = replace(STEP, segments=REFUSED[name](STEP.segments))

    with pytest.raises(UnsupportedSegment, match="a prefix and to the sequence's own keys only"):
        backend.plan(step)


@pytest.mark.parametrize("num_prefixes", [2, 1, 0])
def test_prefixes_and_own_keys_are_planned(num_prefixes: int, backend: NativeBackend) -> None:
    """Control of the test above. Spans without a prefix form groups, too."""
    backend.plan(replace(STEP, segments=STEP.segments[2 - num_prefixes :]))

    _, groups, _ = backend.layers._step_memory
    assert [(group.num_tokens, group.first_span, group.last_span) for group in groups] == {
        2: [(0, 0, 1), (21, 1, 3), (3, 3, 4)],
        1: [(0, 0, 3), (3, 3, 4)],
        0: [(0, 0, 4)],
    }[num_prefixes]
