"""PEFT as its users run it: one task a batch, one batch after the other.

PEFT puts the active adapter's prefix before every row of a batch, so requests of several tasks need
a batch for each. There is no server, and no waiting: all requests are there from the start.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from peft import PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from foreword_bench.workload import Workload


def run(
    folder: Path, workload: Workload, *, num_tasks: int, num_prefix_tokens: int, num_threads: int
) -> dict[str, Any]:
    """All requests of the workload, task by task, after one batch to warm up."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(workload.seed)
    model = _model_of(folder, num_tasks, num_prefix_tokens)
    batches = [
        [workload.prompt(request) for request in range(task, workload.num_requests, num_tasks)]
        for task in range(num_tasks)
    ]
    _generate(model, 0, batches[0], workload.num_new_tokens)
    started_s = time.perf_counter()
    num_tokens = sum(
        _generate(model, task, prompts, workload.num_new_tokens)
        for task, prompts in enumerate(batches)
        if prompts
    )
    wall_s = time.perf_counter() - started_s
    return {"requests": workload.num_requests, "out_tok_s": round(num_tokens / wall_s, 1)}


def _model_of(folder: Path, num_tasks: int, num_prefix_tokens: int) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=num_prefix_tokens, inference_mode=True
    )
    model = get_peft_model(base, config, adapter_name="task-0")
    for task in range(1, num_tasks):
        model.add_adapter(f"task-{task}", config)
    model.to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    return model


@torch.inference_mode()
def _generate(model: Any, task: int, prompts: list[list[int]], num_new_tokens: int) -> int:
    model.set_adapter(f"task-{task}")
    rows = torch.tensor(prompts)
    out = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=num_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    num_tokens: int = (out.shape[1] - rows.shape[1]) * len(rows)
    assert num_tokens == num_new_tokens * len(rows), "PEFT stopped early"
    return num_tokens
