"""The engine as a CPU gets it when nobody asks for anything, for models like Llama and others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.engine.assembly import Assembly, assemble, make_runner
from server.engine.messages import EngineConfig
from server.engine.page_allocator import PageAllocator
from server.engine.request import Sampling
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from tests.tiny_models import CONFIGS, AlwaysReady, build_model, oracle

PROMPT = torch.randint(3, 97, (150,), generator=torch.Generator().manual_seed(0)).tolist()
NUM_NEW = 8


@pytest.mark.parametrize("family", list(CONFIGS))
def test_what_auto_chooses_computes_the_model(family: str, tmp_path: Path) -> None:
    """Also where compiled layers were tried and turned out not to fit."""
    model = build_model(family, "eager")
    model.save_pretrained(tmp_path)
    config = EngineConfig(
        model=str(tmp_path), blobs=str(tmp_path), device="cpu", dtype="float32",
        kv_cache_bytes=16 << 20, max_num_seqs=4, max_num_batched_tokens=64, num_threads=1,
    )  # fmt: skip

    tokens = generated(assemble(config), config)

    assert tokens == oracle(model, PROMPT, None, NUM_NEW)[0]


def generated(parts: Assembly, config: EngineConfig) -> list[int]:
    runner = make_runner(parts, config, {}.__getitem__)
    allocator = PageAllocator(parts.size.num_pages, parts.size.page_size)
    scheduler = Scheduler(
        allocator, AlwaysReady(), max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens, eos_token_ids=[],
    )  # fmt: skip
    sampling = Sampling(max_tokens=NUM_NEW, ignore_eos=True)
    scheduler.add(Sequence(0, None, list(PROMPT), sampling))
    tokens: list[int] = []
    for _ in range(100):
        if not scheduler.has_work:
            break
        batch = scheduler.schedule()
        for delta in scheduler.commit(batch, runner.launch(batch).tokens()):
            tokens += delta.token_ids
    return tokens
