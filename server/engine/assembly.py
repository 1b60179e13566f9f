"""What the engine is made of on each kind of device: model, attention, pool, runner."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface

from prefix_store.digest import Digest
from server.engine import messages as m
from server.engine.attention.base import ATTENTION_NAME, AttentionBackend, Bounds
from server.engine.attention.cpu import CpuBackend
from server.engine.attention.ref import RefBackend
from server.engine.graphs import CudaCapture, Graphs, buckets_for
from server.engine.kv_pool import KvPool
from server.engine.model.load import LoadedModel, load
from server.engine.model.prepack import prepack
from server.engine.native.backend import NativeBackend, install
from server.engine.native.blocks import BlockPool, to_blocks
from server.engine.native.build import NativeUnavailable
from server.engine.native.layers import NotLlamaLike
from server.engine.residency import ResidentPrefix
from server.engine.runner import Runner
from server.engine.self_test import examples, tested
from server.engine.sizing import (
    Budget,
    Sizes,
    activation_bytes,
    choose_device,
    choose_dtype,
    cpu_budget,
    cuda_budget,
    sizes,
)
from server.engine.transfer import SideCopy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that depend on the device, and fit together."""

    device: str
    loaded: LoadedModel
    backend: AttentionBackend
    size: Sizes
    prefix_bytes: int
    pool: KvPool
    layout: Callable[[Tensor], Tensor]
    """A prefix's keys and values -> the same as the backend reads them, in host memory."""
    copy: Callable[[Tensor], Tensor] | None
    """Host memory -> the device, where that is not the same."""


def assemble(config: m.EngineConfig) -> Assembly:
    """Raises what loading a model can raise, and ValueError where the settings do not fit."""
    device = choose_device(config.device)
    if config.quantization != "none" and (
        device != "cpu" or config.attention not in ("auto", "native")
    ):
        raise ValueError("quantization needs the compiled layers: attention=native on a CPU")
    backend = _backend(config.attention, device)
    dtype = choose_dtype(config.dtype, device)
    loaded = load(config.model, dtype=dtype, device=device, backend=backend)
    if config.attention in ("auto", "native") and device == "cpu":
        backend = _native(config, loaded) or backend
        AttentionInterface.register(ATTENTION_NAME, backend.attend)  # the trial put others there
    if isinstance(backend, CpuBackend):
        prepack(loaded.model)
    if device == "cuda":
        from server.engine.model.fuse import fuse  # CPU machines lack Triton

        fuse(loaded.model)
    budget = _cuda_budget(config, loaded) if device == "cuda" else cpu_budget(config)
    size = sizes(config, loaded, budget.kv, paged=not isinstance(backend, CpuBackend))
    new_pool, layout = KvPool, _as_it_is
    if isinstance(backend, NativeBackend):
        new_pool, layout = BlockPool, to_blocks
    pool = new_pool(loaded.spec, num_pages=size.num_pages, page_size=size.page_size, device=device)
    num_rows = max(buckets_for(config.max_num_batched_tokens)[-1], config.max_num_batched_tokens)
    bounds = Bounds(loaded.num_heads, num_rows, config.max_num_seqs, size.max_model_len)
    backend.allocate(pool, bounds)
    copy = SideCopy(device) if device == "cuda" else None
    return Assembly(device, loaded, backend, size, budget.prefixes, pool, layout, copy)


def make_runner(
    parts: Assembly, config: m.EngineConfig, prefix_of: Callable[[Digest], ResidentPrefix]
) -> Runner:
    """With graphs where there are any. Before any sequence runs: its tests write into the pool."""
    runner = Runner(parts.loaded.model, parts.backend, prefix_of, parts.loaded.eos_token_ids)
    if isinstance(parts.backend, NativeBackend):
        runner.highest, runner.direct = parts.backend.highest, parts.backend.direct
    device = parts.loaded.model.device
    if device.type == "cuda" and parts.backend.graph_safe:
        graphs = Graphs(
            runner.run_model,
            CudaCapture(),
            max_num_tokens=config.max_num_batched_tokens,
            max_num_rows=max(2, config.max_num_seqs),
            device=device,
        )
        steps = examples(parts.loaded.spec, parts.loaded.vocab_size, device)
        runner.graphs = tested(graphs, runner.run_model, parts.backend, steps)
    return runner


def _backend(name: str, device: str) -> AttentionBackend:
    if name in ("cpu", "native", "triton") and (name == "triton") != (device == "cuda"):
        raise ValueError(f"attention={name} does not run on device={device}; use attention=auto")
    if name == "triton" or (name == "auto" and device == "cuda"):
        from server.engine.attention.triton import TritonBackend  # CPU machines lack Triton

        return TritonBackend()
    return RefBackend() if name == "ref" else CpuBackend()


def _native(config: m.EngineConfig, loaded: LoadedModel) -> NativeBackend | None:
    """None where the compiled layers cannot be had and nobody insists on them."""
    try:
        backend = install(
            loaded.model,
            loaded.spec,
            config.num_threads or os.cpu_count() or 1,
            int8=config.quantization == "int8",
        )
    except (NativeUnavailable, NotLlamaLike) as exc:
        if config.attention == "native" or config.quantization != "none":
            raise
        logger.warning("without compiled layers, slower: %s", exc)
        return None
    torch.set_num_threads(1)  # the cores belong to the team of the compiled layers
    return backend


def _cuda_budget(config: m.EngineConfig, loaded: LoadedModel) -> Budget:
    reserved = activation_bytes(
        num_tokens=buckets_for(config.max_num_batched_tokens)[-1],
        num_rows=config.max_num_seqs,
        hidden_size=loaded.spec.hidden_size,
        vocab_size=loaded.vocab_size,
        itemsize=loaded.model.dtype.itemsize,
    )
    torch.cuda.empty_cache()  # what loading left
    num_free_bytes, _ = torch.cuda.mem_get_info()
    return cuda_budget(config, num_free_bytes=num_free_bytes, num_reserved_bytes=reserved)


def _as_it_is(kv: Tensor) -> Tensor:
    return kv
