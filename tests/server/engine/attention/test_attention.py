"""The conformance suite of all backends: the engine equals transformers' own attention."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch

from server.engine.attention.base import AttentionBackend
from server.engine.attention.cpu import CpuBackend
from server.engine.attention.ref import RefBackend
from server.engine.memory.prefix import ResidentPrefix
from tests.tiny_models import (
    CONFIGS,
    Engine,
    build_model,
    make_engine,
    oracle,
    random_prefix,
    spec_of,
)

ATOL = 2e-5
NUM_NEW = 6


def triton() -> AttentionBackend:
    """Compiled on CUDA, otherwise interpreted, which takes a second for a few hundred rows."""
    from server.engine.attention.triton import TritonBackend

    return TritonBackend()


BACKENDS = [
    RefBackend,
    CpuBackend,
    pytest.param(triton, marks=pytest.mark.skipif(not find_spec("triton"), reason="no Triton")),
]
MakeBackend = Callable[[], AttentionBackend]


def prompt(seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (1 + seed * 7 % 30,), generator=generator).tolist()


def engine_on(family: str, backend: AttentionBackend, max_num_batched_tokens: int = 24) -> Engine:
    model = build_model(family, "foreword")
    if backend.name == "triton" and torch.cuda.is_available():
        model = model.to("cuda")
    page_size, num_pages = (128, 32) if isinstance(backend, CpuBackend) else (4, 400)
    return make_engine(
        model,
        backend,
        page_size=page_size,
        num_pages=num_pages,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def prefixes_for(family: str) -> list[ResidentPrefix | None]:
    spec = spec_of(CONFIGS[family])
    return [None, *(random_prefix(spec, num_tokens, seed=num_tokens) for num_tokens in (1, 6, 20))]


@pytest.mark.parametrize("make_backend", BACKENDS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_mixed_batch_with_chunked_prefill_equals_each_sequence_alone(
    family: str, make_backend: MakeBackend
) -> None:
    num_seqs, num_new, num_batched = (3, 2, 16) if make_backend is triton else (9, NUM_NEW, 24)
    engine = engine_on(family, make_backend(), num_batched)
    reference = build_model(family, "eager")
    prefixes = prefixes_for(family)
    for i in range(num_seqs):
        engine.add(i, prompt(i), prefixes[i % 4], num_new)

    tokens = engine.run()

    for i in range(num_seqs):
        expected_tokens, expected_logits = oracle(reference, prompt(i), prefixes[i % 4], num_new)
        got = torch.stack(engine.runner.logits[i])
        torch.testing.assert_close(got, expected_logits, atol=ATOL, rtol=0)
        assert tokens[i] == expected_tokens


@pytest.mark.parametrize("make_backend", BACKENDS)
def test_another_tasks_prefix_gives_other_logits(make_backend: MakeBackend) -> None:
    """Control of the test above: it would notice if two prefixes were exchanged."""
    engine, reference = engine_on("llama", make_backend()), build_model("llama", "eager")
    _, one, _, other = prefixes_for("llama")
    engine.add(0, prompt(5), one, 1)

    engine.run()

    _, expected = oracle(reference, prompt(5), other, 1)
    assert (engine.runner.logits[0][0] - expected[0]).abs().max() > 100 * ATOL


def test_rows_stay_exact_when_others_leave_holes_in_the_pool() -> None:
    engine, reference = engine_on("llama", CpuBackend()), build_model("llama", "eager")
    prefix = prefixes_for("llama")[2]
    for i in range(12):
        engine.add(i, prompt(i), prefix, 2 if i in (1, 2, 3, 5, 6, 7, 8, 9, 10) else 12)

    tokens = engine.run()

    for i in (0, 4, 11):
        assert tokens[i] == oracle(reference, prompt(i), prefix, 12)[0]


def test_preempted_sequences_are_recomputed_to_the_same_tokens() -> None:
    model, reference = build_model("llama", "foreword"), build_model("llama", "eager")
    engine = make_engine(model, RefBackend(), page_size=4, num_pages=14)
    prefix = prefixes_for("llama")[3]
    for i in range(3):
        engine.add(i, prompt(i), prefix, 20)

    tokens = engine.run()

    assert engine.scheduler.num_preemptions > 0
    for i in range(3):
        assert tokens[i] == oracle(reference, prompt(i), prefix, 20)[0]


@pytest.mark.parametrize(("make_backend", "poison"), [(CpuBackend, 1e30), (RefBackend, torch.nan)])
def test_poison_in_unused_slots_changes_nothing(make_backend: MakeBackend, poison: float) -> None:
    engine, clean = engine_on("llama", make_backend()), engine_on("llama", make_backend())
    engine.pool.pages.fill_(poison)
    for i in range(4):
        engine.add(i, prompt(i), None, NUM_NEW)
        clean.add(i, prompt(i), None, NUM_NEW)

    # Each engine registers its own backend, so one must finish before the other starts.
    expected = clean.run()
    engine.runner.activate()

    assert engine.run() == expected


def test_all_sequences_of_a_prefix_share_one_segment() -> None:
    engine = engine_on("llama", CpuBackend(), max_num_batched_tokens=512)
    prefix = prefixes_for("llama")[3]
    for i in range(8):
        engine.add(i, prompt(i), prefix, 2)

    engine.run()

    shared = [step.segments_beside_own() or [] for step in engine.runner.steps]
    assert [len(segments) for segments in shared] == [1, 1]
    assert shared[1][0].end == 8
