"""Graphs without a GPU: captured work is called again, on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.attention.base import AttentionBackend, BatchCapacity, Step
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.memory.kv_pool import KvPool
from server.engine.runner.graphs import BUCKETS, CAPTURED_AT_START, Capture, Graphs, buckets_for
from server.engine.runner.self_test import agrees, example_steps
from tests.tiny_models import (
    CONFIGS,
    VOCAB,
    Engine,
    build_model,
    make_engine,
    oracle,
    random_prefix,
    spec_of,
)

CPU = torch.device("cpu")
INTERPRETED = pytest.mark.skipif(
    torch.cuda.is_available() or not find_spec("triton"),
    reason="no Triton, or it is compiled: tests/gpu has the same test",
)


def test_the_last_bucket_is_the_first_that_holds_the_largest_step() -> None:
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert buckets_for(2048) == list(BUCKETS)
    assert buckets_for(512)[-3:] == [448, 480, 512]
    assert buckets_for(100)[-2:] == [96, 104]
    assert buckets_for(5000)[-1] == 2048


class Recorder:
    """A stand-in for CUDA graphs that counts captures and replays."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        number = len(self.captured)
        self.captured.append(number)
        work()

        def replay() -> None:
            self.replayed.append(number)
            work()

        return replay


class Doubled:
    """A forward without a model: the logits of a row are its token and its position."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, step: Step) -> Tensor:
        self.shapes.append((step.input_ids.shape[1], len(step.logit_rows)))
        at = step.logit_rows
        return torch.stack([step.input_ids[0, at], step.position_ids[0, at]], dim=1).float()


def step_of(token_ids: list[int], rows: list[int]) -> Step:
    ids = torch.tensor([token_ids])
    return Step(ids, ids * 2, torch.tensor(rows, dtype=torch.long), [], [])


def test_the_largest_bucket_is_captured_first_and_those_above_512_on_first_use() -> None:
    forward, recorder = Doubled(), Recorder()
    graphs = Graphs(forward, recorder, max_num_tokens=1024, max_num_rows=4, device=CPU)
    graphs.capture_all()
    sizes = [num_tokens for num_tokens, _ in forward.shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == CAPTURED_AT_START
    assert {rows for _, rows in forward.shapes} == {1, 2, 4}

    graphs.replay(step_of([1] * 600, [0]))
    assert forward.shapes[-1] == (768, 4)
    num_captured = len(recorder.captured)
    graphs.replay(step_of([1] * 700, [0]))
    assert len(recorder.captured) == num_captured


def test_a_step_is_padded_to_its_bucket_and_only_its_own_rows_are_returned() -> None:
    forward, recorder = Doubled(), Recorder()
    graphs = Graphs(forward, recorder, max_num_tokens=64, max_num_rows=8, device=CPU)
    graphs.capture_all()

    large = graphs.replay(step_of([*range(100, 160)], [59, 3, 0]))
    assert forward.shapes[-1] == (64, 8)
    assert large is not None
    assert large.tolist() == [[159, 318], [103, 206], [100, 200]]

    small = graphs.replay(step_of([7, 8, 9], [2]))  # row 59 of the last step would be out of range
    assert forward.shapes[-1] == (4, 4)
    assert small is not None
    assert small.tolist() == [[9, 18]]
    nothing_sampled = graphs.replay(step_of([7], []))
    assert nothing_sampled is not None
    assert nothing_sampled.shape == (0, 2)


def test_a_step_larger_than_every_bucket_has_no_replay() -> None:
    graphs = Graphs(Doubled(), Recorder(), max_num_tokens=16, max_num_rows=8, device=CPU)
    graphs.capture_all()

    assert graphs.replay(step_of([1] * 17, [0])) is None


def test_a_failed_capture_is_not_tried_again() -> None:
    tries = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        tries.append(work)
        raise torch.OutOfMemoryError("no room")

    graphs = Graphs(Doubled(), capture, max_num_tokens=16, max_num_rows=8, device=CPU)

    assert graphs.replay(step_of([1], [0])) is None
    assert graphs.replay(step_of([1], [0])) is None
    assert len(tries) == 1


# --- with a model ---


class Oracle(RefBackend):
    """The reference backend, which plans on the host. That works because replays run the code."""

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        super().allocate(pool, capacity)
        self.plan(step_of([], []))


def triton() -> AttentionBackend:
    """Interpreted without a GPU."""
    from server.engine.attention.triton import TritonBackend

    return TritonBackend()


def engine_with_graphs(
    capture: Capture,
    spoil: Callable[[Tensor], Tensor] = lambda logits: logits,
    backend: AttentionBackend | None = None,
) -> tuple[Engine, Graphs, AttentionBackend]:
    backend = backend or Oracle()
    engine = make_engine(build_model("llama", ATTENTION_NAME), backend, page_size=16, num_pages=64)
    graphs = Graphs(
        lambda step: spoil(engine.runner.parts.forward(step)),
        capture,
        max_num_tokens=16,
        max_num_rows=32,
        device=CPU,
    )
    graphs.capture_all()
    return engine, graphs, backend


def passes_self_test(*args: Callable[..., Any]) -> bool:
    engine, graphs, backend = engine_with_graphs(*args)
    spec = spec_of(CONFIGS["llama"])
    return agrees(graphs, engine.runner.parts.forward, backend, example_steps(spec, VOCAB, CPU))


@pytest.mark.parametrize(
    "make_backend",
    [
        Oracle,
        pytest.param(triton, marks=INTERPRETED),
    ],
)
def test_replays_return_the_tokens_of_each_sequence_alone(
    make_backend: Callable[[], AttentionBackend],
) -> None:
    recorder, reference = Recorder(), build_model("llama", "eager")
    engine, graphs, _ = engine_with_graphs(recorder, backend=make_backend())
    engine.rebuild_runner(graphs=graphs)
    engine.scheduler.max_num_batched_tokens = 12
    prefix = random_prefix(spec_of(CONFIGS["llama"]), 7, 0)
    prompts = [[*range(3 + i, 7 + 3 * i)] for i in range(3)]
    for i, prompt in enumerate(prompts):
        engine.add(i, prompt, prefix if i % 2 else None, 3)

    tokens = engine.run()

    assert len(recorder.replayed) > 3, "prompts in the same steps as decode rows"
    for i, prompt in enumerate(prompts):
        assert tokens[i] == oracle(reference, prompt, prefix if i % 2 else None, 3)[0]


def test_the_self_test_passes_correct_graphs() -> None:
    assert passes_self_test(Recorder())


def does_nothing(work: Callable[[], None]) -> Callable[[], None]:
    work()
    return lambda: None


@pytest.mark.parametrize(
    "spoiled",
    [
        [does_nothing],
        [Recorder(), lambda logits: logits * 1.001],
        [Recorder(), lambda logits: logits.roll(1, 0)],
        [Recorder(), lambda logits: logits * torch.nan],
    ],
    ids=["frozen", "slightly off", "in other rows", "nan"],
)
def test_the_self_test_refuses_wrong_graphs(spoiled: list[Callable[..., Any]]) -> None:
    assert not passes_self_test(*spoiled)
