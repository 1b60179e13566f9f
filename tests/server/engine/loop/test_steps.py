"""Steps with a real model, one ahead: tokens of the step in flight are inputs of the next."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import pytest
import torch

from prefix_store.digest import Digest
from server.engine.attention.interface import ATTENTION_NAME
from server.engine.attention.ref import RefBackend
from server.engine.loop.steps import Steps
from server.engine.memory.prefix import ResidentPrefix
from server.engine.params import Delta, SamplingParams
from server.engine.scheduler.batch import Batch
from server.engine.scheduler.sequence import Sequence, SequenceStatus
from tests.tiny_models import (
    CONFIGS,
    Engine,
    build_model,
    make_engine,
    oracle,
    random_prefix,
    spec_of,
)

SPEC = spec_of(CONFIGS["llama"])
PROMPTS = [[*range(3 + i, 8 + 4 * i)] for i in range(6)]
NUM_NEW = 9


@dataclass
class Run:
    engine: Engine
    overlap: bool
    failures: list[int] = field(default_factory=list)
    chunks_in_flight: int = 0

    def __post_init__(self) -> None:
        self.steps = Steps(
            self.engine.scheduler, self.engine.runner,
            on_commit=self._on_commit, on_failure=self._on_failure,
            overlap=self.overlap,
        )  # fmt: skip

    def run(self) -> dict[int, list[int]]:
        for _ in range(200):
            if not self.steps.has_work:
                return self.engine.completions
            self.steps.step()
            self.engine.scheduler.check()
        raise AssertionError("the engine did not finish")

    def _on_commit(self, batch: Batch, deltas: list[Delta]) -> None:
        self.chunks_in_flight += sum(chunk.input_in_flight for chunk in batch.chunks)
        for delta in deltas:
            self.engine.completions.setdefault(delta.request_id, []).extend(delta.token_ids)

    def _on_failure(self, seq: Sequence, message: str) -> None:
        self.failures.append(seq.request_id)
        if seq.status is not SequenceStatus.FINISHED:
            self.engine.scheduler.finish(seq)


def make_run(*, overlap: bool = True, num_pages: int = 60) -> Run:
    model = build_model("llama", ATTENTION_NAME)
    engine = make_engine(
        model, RefBackend(), page_size=4, num_pages=num_pages, max_num_batched_tokens=24
    )
    return Run(engine, overlap)


@pytest.mark.parametrize(
    "num_pages", [60, 20]
)  # enough for all; so few that a sequence is preempted
def test_greedy_tokens_match_those_of_each_sequence_alone(num_pages: int) -> None:
    run, reference = make_run(num_pages=num_pages), build_model("llama", "eager")
    prefixes: list[ResidentPrefix | None] = [None, random_prefix(SPEC, 6, 1)]
    for i, prompt in enumerate(PROMPTS):
        run.engine.add(i, prompt, prefixes[i % 2], NUM_NEW)

    tokens = run.run()

    assert run.chunks_in_flight > NUM_NEW
    assert (run.engine.scheduler.num_preemptions > 0) == (num_pages == 20)
    for i, prompt in enumerate(PROMPTS):
        assert tokens[i] == oracle(reference, prompt, prefixes[i % 2], NUM_NEW)[0]


def test_sampled_tokens_do_not_depend_on_overlap() -> None:
    runs = [make_run(overlap=overlap) for overlap in (False, True)]
    drawn = []
    for run in runs:
        run.engine.runner.activate()
        for i, prompt in enumerate(PROMPTS):
            sampling = SamplingParams(
                max_tokens=NUM_NEW, temperature=1.0, top_p=0.9, seed=i, ignore_eos=True
            )
            run.engine.scheduler.add(Sequence(i, None, list(prompt), sampling))
        drawn.append(run.run())

    assert drawn[0] == drawn[1]
    assert [run.chunks_in_flight > 0 for run in runs] == [False, True]


def test_nan_is_detected_a_step_late_and_fails_one_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    run, reference = make_run(), build_model("llama", "eager")
    poison = random_prefix(SPEC, 6, 1)
    poison.kv[-1, 1] = torch.nan
    digest = Digest.of(b"poison")
    run.engine.ready.prefixes[digest] = poison
    sampling = SamplingParams(max_tokens=NUM_NEW, ignore_eos=True)
    for i, prompt in enumerate(PROMPTS[:3]):
        prefix = digest if i == 1 else None
        run.engine.scheduler.add(Sequence(i, prefix, list(prompt), sampling))

    with caplog.at_level(logging.ERROR):
        tokens = run.run()

    assert run.failures == [1]
    assert not caplog.records, "a step failed as a whole"
    for i in (0, 2):
        assert tokens[i] == oracle(reference, PROMPTS[i], None, NUM_NEW)[0]
    assert 1 not in tokens
