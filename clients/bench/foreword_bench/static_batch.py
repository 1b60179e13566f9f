"""PEFT without a server, as its users run it, with all requests known from the start.

Prefixes: PEFT puts the active adapter's prefix before every row of a batch, so each task needs a
batch of its own, one after another. LoRA: `adapter_names` gives every row of one batch its own
adapter (mixed-adapter batches).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from transformers import AutoModelForCausalLM

from foreword_bench.workload import Workload

Method = Literal["prefix", "lora"]
LORA_RANK = 8


def run(
    folder: Path,
    workload: Workload,
    *,
    method: Method,
    num_tasks: int,
    num_prefix_tokens: int,
    num_threads: int,
) -> dict[str, Any]:
    """Run all requests of the workload in as few batches as possible, after a warm-up batch."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(workload.seed)
    model = _model_of(folder, _config(method, num_prefix_tokens), num_tasks)
    requests = range(workload.num_requests)
    if method == "lora":
        batches = [list(requests)]
    else:
        batches = [list(requests[task::num_tasks]) for task in range(num_tasks)]
    batches = [batch for batch in batches if batch]
    _generate(model, workload, batches[0], num_tasks, method)
    started_s = time.perf_counter()
    num_tokens = sum(_generate(model, workload, batch, num_tasks, method) for batch in batches)
    wall_s = time.perf_counter() - started_s
    return {"requests": workload.num_requests, "out_tok_s": round(num_tokens / wall_s, 1)}


def _config(method: Method, num_prefix_tokens: int) -> peft.PeftConfig:
    if method == "lora":
        return peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=LORA_RANK,
            lora_alpha=2 * LORA_RANK,
            target_modules="all-linear",
            inference_mode=True,
        )
    return peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=num_prefix_tokens, inference_mode=True
    )


def _model_of(folder: Path, config: peft.PeftConfig, num_tasks: int) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model: Any = peft.get_peft_model(base, config, adapter_name="task-0")
    for task in range(1, num_tasks):
        model.add_adapter(f"task-{task}", config)
    model.to(torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    return model


@torch.inference_mode()
def _generate(
    model: Any, workload: Workload, requests: list[int], num_tasks: int, method: Method
) -> int:
    names = [f"task-{request % num_tasks}" for request in requests]
    adapters = {"adapter_names": names} if method == "lora" else {}
    model.set_adapter(names[0])
    rows = torch.tensor([workload.prompt(request) for request in requests])
    out = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=workload.num_new_tokens,
        do_sample=False,
        pad_token_id=0,
        **adapters,
    )
    num_tokens: int = (out.shape[1] - rows.shape[1]) * len(rows)
    assert num_tokens == workload.num_new_tokens * len(rows), "PEFT stopped early"
    return num_tokens
