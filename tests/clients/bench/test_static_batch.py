"""PEFT without a server: as few batches as it allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest

from foreword_bench import compare, static_batch
from foreword_bench.workload import Workload
from tests.tiny_models import build_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, list[str] | None]]:
    """Rows, active adapter and the rows' own adapters of every batch."""
    seen: list[tuple[int, str, list[str] | None]] = []
    generate = peft.PeftModelForCausalLM.generate

    def noted(self: Any, **kwargs: Any) -> Any:
        seen.append((len(kwargs["input_ids"]), self.active_adapter, kwargs.get("adapter_names")))
        return generate(self, **kwargs)

    monkeypatch.setattr(peft.PeftModelForCausalLM, "generate", noted)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build_model("llama", "sdpa")
    model.resize_token_embeddings(40_000)  # a load's tokens are those of a real vocabulary
    model.save_pretrained(tmp_path)
    return tmp_path


WORKLOAD = Workload(num_requests=5, prompt_lengths=(6,), num_new_tokens=3)


def run(folder: Path, method: static_batch.Method) -> dict[str, Any]:
    return static_batch.run(
        folder, WORKLOAD, method=method, num_tasks=2, num_prefix_tokens=4, num_threads=1
    )


def test_prefixes_need_a_batch_for_each_task(
    folder: Path, calls: list[tuple[int, str, list[str] | None]]
) -> None:
    figures = run(folder, "prefix")

    assert figures["requests"] == 5
    assert figures["out_tok_s"] > 0
    warm_up, *batches = calls
    assert batches == [(3, "task-0", None), (2, "task-1", None)]
    assert warm_up == batches[0]


def test_lora_mixes_adapters_in_one_batch(
    folder: Path, calls: list[tuple[int, str, list[str] | None]]
) -> None:
    figures = run(folder, "lora")

    assert figures["requests"] == 5
    assert [names for _, _, names in calls] == [
        ["task-0", "task-1", "task-0", "task-1", "task-0"]
    ] * 2


def test_compare_runs_it_in_a_process_and_reads_its_json(folder: Path) -> None:
    options = ["--tasks", "2", "--prefix-tokens", "4", "--requests", "2", "--threads", "1"]
    lengths = ["--prompt-tokens", "6", "--new-tokens", "3"]

    figures = compare._own_process("static-batch", str(folder), *options, *lengths)

    assert figures["requests"] == 2
    assert figures["out_tok_s"] > 0
