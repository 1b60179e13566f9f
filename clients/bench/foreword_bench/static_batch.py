"""transformers' `generate`, one task after the other: how prefix tuning is run without a server.

PEFT puts one task's prefix before every row of a batch, so requests of several tasks need a batch
for each task; so it is done here, with the prefix copied to every row as PEFT does.
"""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from foreword_bench.workload import Workload


def run(
    model_dir: str, workload: Workload, *, num_tasks: int, num_prefix_tokens: int, num_threads: int
) -> dict[str, float]:
    """As many waves of `concurrency` requests as the workload holds, after one to warm up."""
    torch.set_num_threads(num_threads)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    prefixes = [_random_prefix(model, num_prefix_tokens, seed) for seed in range(num_tasks)]
    num_waves = max(1, workload.num_requests // workload.concurrency)
    _wave(model, workload, prefixes, 0)
    started_s = time.perf_counter()
    for wave in range(num_waves):
        _wave(model, workload, prefixes, wave)
    wall_s = time.perf_counter() - started_s
    num_tokens = num_waves * workload.concurrency * workload.num_new_tokens
    return {"concurrency": workload.concurrency, "out_tok_s": round(num_tokens / wall_s, 1)}


Layers = list[tuple[torch.Tensor, torch.Tensor]]


def _random_prefix(model: PreTrainedModel, num_tokens: int, seed: int) -> Layers:
    """Keys and values [num_kv_heads, num_tokens, head_dim] for each layer."""
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    shape = (2, config.num_key_value_heads, num_tokens, config.head_dim)
    layers = []
    for _ in range(config.num_hidden_layers):
        keys, values = torch.randn(shape, generator=generator).to(model.dtype)
        layers.append((keys, values))
    return layers


@torch.inference_mode()
def _wave(model: PreTrainedModel, workload: Workload, prefixes: list[Layers], wave: int) -> None:
    first = wave * workload.concurrency
    for task, prefix in enumerate(prefixes):
        requests = range(first + task, first + workload.concurrency, len(prefixes))
        rows = torch.tensor([workload.prompt(request) for request in requests])
        num_prefix_tokens = prefix[0][0].shape[1]
        cache = DynamicCache(
            [tuple(t[None].repeat(len(rows), 1, 1, 1) for t in layer) for layer in prefix]
        )
        mask = torch.ones(len(rows), num_prefix_tokens + rows.shape[1], dtype=torch.long)
        padded = torch.cat([rows.new_zeros(len(rows), num_prefix_tokens), rows], dim=1)
        model.generate(
            input_ids=padded,  # generate skips as many ids as the cache holds
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=workload.num_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
