"""Attention of one layer, with a prefix that is read once for all rows or once per row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import AttentionCall, BatchCapacity, QuerySpan, Segment, Step
from server.engine.attention.triton import TritonBackend
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix

_PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    device: str
    dtype: str
    batch_sizes: tuple[int, ...]
    prefix_lengths: tuple[int, ...]
    num_own_tokens: int
    num_layers: int
    """Layers that are run in turn, so that none finds its keys in the cache."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    copy_bytes: int
    num_repeats: int


LLAMA_8B = Sizes(
    "cuda", "bfloat16", (1, 64, 256), (64, 1024, 8192), 256, 8, 32, 8, 128, 4 << 30, 20
)
TINY = Sizes("cpu", "float32", (1, 2), (8, 24), 4, 2, 4, 2, 16, 1 << 20, 1)


def run(sizes: Sizes = LLAMA_8B) -> Iterator[tuple[str, Any]]:
    """Yield times per batch size and prefix length.

    `fraction`: rate at which the needed keys and values are read, relative to the rate of a copy
    (bytes read and written). If the prefix is read once per row, the cache can lift it above 1.
    """
    rate = _copy_rate(sizes)
    yield "copy_bytes_per_s", round(rate)
    for batch_size in sizes.batch_sizes:
        backend = _backend(sizes, batch_size)
        for length in sizes.prefix_lengths:
            for shared in (True, False):
                name = f"batch {batch_size}, prefix {length}, {'once' if shared else 'each'}"
                yield name, _measure(sizes, backend, batch_size, length, shared, rate)


def _copy_rate(sizes: Sizes) -> float:
    """Return the bytes per second that a copy reads and writes."""
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    return 2 * sizes.copy_bytes / _seconds(lambda: target.copy_(source), sizes)


def _measure(
    sizes: Sizes,
    backend: TritonBackend,
    batch_size: int,
    length: int,
    shared: bool,
    rate: float,
) -> dict[str, float]:
    step = _step(sizes, batch_size, length, shared)
    began_s = time.perf_counter()
    for _ in range(sizes.num_repeats):
        backend.plan(step)
    plan_s = (time.perf_counter() - began_s) / sizes.num_repeats
    dtype = getattr(torch, sizes.dtype)
    query, key = (
        torch.randn(heads, batch_size, sizes.head_dim, dtype=dtype, device=sizes.device)
        for heads in (sizes.num_heads, sizes.num_kv_heads)
    )
    call = AttentionCall(sizes.head_dim**-0.5)

    def all_layers() -> None:
        for layer in range(sizes.num_layers):
            backend.attend(layer, query, key, key, call)

    layer_s = _seconds(all_layers, sizes) / sizes.num_layers
    num_tokens = length * (1 if shared else batch_size) + batch_size * sizes.num_own_tokens
    num_bytes = num_tokens * 2 * sizes.num_kv_heads * sizes.head_dim * dtype.itemsize
    return {
        "layer_us": round(layer_s * 1e6, 2),
        "plan_us": round(plan_s * 1e6, 1),
        "bytes_per_s": round(num_bytes / layer_s),
        "fraction": round(num_bytes / layer_s / rate, 3),
    }


def _backend(sizes: Sizes, batch_size: int) -> TritonBackend:
    spec = BaseModelSpec(
        "benchmark", "sha256:" + "0" * 64, sizes.num_layers, sizes.num_kv_heads, sizes.head_dim,
        sizes.num_heads * sizes.head_dim, sizes.dtype,
    )  # fmt: skip
    num_pages = batch_size * -(-sizes.num_own_tokens // _PAGE_SIZE)
    pool = KvPool(spec, num_pages=num_pages, page_size=_PAGE_SIZE, device=sizes.device)
    pool.pages.normal_()
    backend = TritonBackend()
    backend.allocate(
        pool, BatchCapacity(sizes.num_heads, batch_size, batch_size, sizes.num_own_tokens)
    )
    return backend


def _step(sizes: Sizes, batch_size: int, length: int, shared: bool) -> Step:
    """Build a step of one token per sequence, with one prefix segment for all or one for each."""
    shape = (sizes.num_layers, 2, sizes.num_kv_heads, length, sizes.head_dim)
    kv = torch.randn(shape, dtype=getattr(torch, sizes.dtype), device=sizes.device)
    prefix = ResidentPrefix(kv, length, length)
    pages_each = -(-sizes.num_own_tokens // _PAGE_SIZE)
    spans = [
        QuerySpan(
            i,
            i,
            1,
            sizes.num_own_tokens - 1,
            list(range(i * pages_each, (i + 1) * pages_each)),
            length,
        )
        for i in range(batch_size)
    ]
    rows = [(0, batch_size)] if shared else [(i, i + 1) for i in range(batch_size)]
    segments = [Segment.of_prefix(begin, end, prefix) for begin, end in rows]
    nothing = torch.empty(0)
    return Step(nothing, nothing, nothing, spans, [*segments, *map(Segment.own, spans)])


def _seconds(work: Callable[[], object], sizes: Sizes) -> float:
    """Return the median time of a call, on CUDA without its launch."""
    work()
    if sizes.device == "cpu":
        began_s = time.perf_counter()
        work()
        return time.perf_counter() - began_s
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    new_event: Any = torch.cuda.Event
    times_ms: list[float] = []
    for _ in range(sizes.num_repeats):
        begin, end = new_event(enable_timing=True), new_event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times_ms.append(begin.elapsed_time(end))
    return median(times_ms) / 1e3
