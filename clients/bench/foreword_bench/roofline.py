"""Roofline model: how fast a step could be if only memory or only arithmetic limited it.

The model of a decode step of B requests with T different prefixes of P tokens, each request with c
tokens of its own so far:

    bytes = weights once + B * c * kv + T * P * kv            kv: keys and values of one token
    flops = B * (2 * weights + 4 * layers * heads * head_dim * (P + c))
    step  = max(bytes / read rate, flops / GEMM rate)

A prefix is read once per step however many requests share it. Weights are those used in products
(the output head, not the embedding lookup). A wave of B requests is one pass over all their
prompts, max(weights' bytes / read rate, prompts' flops / GEMM rate), which also yields the first
token, then one step per further token, with growing c. The roofline of a row is B * new tokens /
wave. Not included: activations, sampling, the server around the model, the client. Rates are the
best of several measurements on all cores.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from foreword_bench.errors import BenchError


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured rates, in bytes and operations per second."""

    copy: float
    """Bytes read plus bytes written."""
    read: float
    gemm: float
    """bfloat16, multiplications and additions."""


@dataclass(frozen=True, slots=True)
class Model:
    """The parameters of a model that its roofline depends on."""

    num_layer_weights: int
    num_head_weights: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    bytes_per_value: int = 2

    @property
    def weight_bytes(self) -> int:
        return (self.num_layer_weights + self.num_head_weights) * self.bytes_per_value

    @property
    def kv_bytes(self) -> int:
        """Size of the keys and values of one token, in bytes."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.bytes_per_value

    def attention_flops(self, num_seen: float) -> float:
        """Return the operations of one token that attends to `num_seen` tokens."""
        return 4 * self.num_layers * self.num_heads * self.head_dim * num_seen

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read a model folder: its config, and the shapes in its safetensors files. Raises
        `BenchError`."""
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except OSError:
            raise BenchError(f"{folder} is not a model folder: it has no config.json") from None
        layers = embedding = head = 0
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118, it is not a dict
                    shape = file.get_slice(name).get_shape()
                    if len(shape) != 2:
                        continue
                    count = shape[0] * shape[1]
                    if "embed" in name:
                        embedding += count
                    elif "lm_head" in name:
                        head += count
                    else:
                        layers += count
        num_heads = config["num_attention_heads"]
        return cls(
            num_layer_weights=layers,
            num_head_weights=head or embedding,
            num_layers=config["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A load in waves of `num_requests` equal requests."""

    num_requests: int
    num_tasks: int
    """0 for the base model without a prefix."""
    num_prefix_tokens: int
    num_prompt_tokens: float
    num_new_tokens: int

    @property
    def num_prefix_seen(self) -> int:
        """Prefix tokens that a request attends to."""
        return self.num_prefix_tokens if self.num_tasks else 0

    @property
    def num_prefix_read(self) -> int:
        """Prefix tokens that a step reads: one prefix for each task among its requests."""
        return min(self.num_tasks, self.num_requests) * self.num_prefix_tokens


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on a machine."""

    model: Model
    rates: Rates

    def step_s(self, shape: Shape, num_own_tokens: float) -> float:
        """Return the shortest decode step if each request has `num_own_tokens` of its own."""
        model = self.model
        num_read = shape.num_requests * num_own_tokens + shape.num_prefix_read
        num_bytes = model.weight_bytes + num_read * model.kv_bytes
        weights = model.num_layer_weights + model.num_head_weights
        num_seen = shape.num_prefix_seen + num_own_tokens
        num_flops = shape.num_requests * (2 * weights + model.attention_flops(num_seen))
        return max(num_bytes / self.rates.read, num_flops / self.rates.gemm)

    def mean_step_s(self, shape: Shape) -> float:
        """Return the mean over a wave's decode steps, in which the requests' own tokens grow."""
        steps_s = [
            self.step_s(shape, shape.num_prompt_tokens + i) for i in range(1, shape.num_new_tokens)
        ]
        return sum(steps_s) / max(1, len(steps_s))

    def prefill_s(self, shape: Shape) -> float:
        """Return the shortest pass over a wave's prompts, which yields each first token."""
        model = self.model
        num_seen = shape.num_prefix_seen + shape.num_prompt_tokens / 2
        a_token = 2 * model.num_layer_weights + model.attention_flops(num_seen)
        a_prompt = shape.num_prompt_tokens * a_token + 2 * model.num_head_weights
        num_flops = shape.num_requests * a_prompt
        return max(model.weight_bytes / self.rates.read, num_flops / self.rates.gemm)

    def tok_s(self, shape: Shape) -> float:
        """Return the max throughput in tokens/s."""
        decode_s = (shape.num_new_tokens - 1) * self.mean_step_s(shape)
        return shape.num_requests * shape.num_new_tokens / (self.prefill_s(shape) + decode_s)


def measure(
    num_threads: int, *, num_bytes: int = 1 << 30, num_times: int = 25, gemm_size: int = 2048
) -> Rates:
    """Measure the best of several tries of each rate, in huge pages. Needs torch."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # torch reads it at its first allocation
    import torch

    torch.set_num_threads(num_threads)
    source = torch.ones(num_bytes // 4)
    target = torch.zeros_like(source)
    copy_s = _best_s(lambda: target.copy_(source), num_times)
    matrix, vector = source.view(-1, 4096), torch.ones(4096)
    read_s = min(
        _best_s(lambda: source.sum(), num_times), _best_s(lambda: matrix.mv(vector), num_times)
    )
    a, b = (torch.ones(gemm_size, gemm_size, dtype=torch.bfloat16) for _ in range(2))
    gemm_s = _best_s(lambda: a @ b, 4 * num_times)
    return Rates(2 * num_bytes / copy_s, num_bytes / read_s, 2 * gemm_size**3 / gemm_s)


def _best_s(work: Callable[[], object], num_times: int) -> float:
    work()
    times = []
    for _ in range(num_times):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return min(times)
