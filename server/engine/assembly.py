"""Assembly of the engine's device-dependent parts: model, attention backend, KV pool, runner."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from prefix_store.digest import Digest
from server.engine.attention import interface
from server.engine.attention.base import AttentionBackend, BatchCapacity
from server.engine.attention.cpu import CpuBackend
from server.engine.attention.ref import RefBackend
from server.engine.ipc import messages as m
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.memory.transfer import SideCopy
from server.engine.model.families import Context
from server.engine.model.load import LoadedModel, load
from server.engine.model.numerics import ANY_LIMIT, MODEL_LIMITS
from server.engine.model.prepack import prepack
from server.engine.model.reference import Reference, reference_of
from server.engine.native.backend import PAGE_SIZE, NativeBackend, install
from server.engine.native.blocks import BlockPool, to_blocks
from server.engine.native.build import NativeUnavailable, has_wide_vectors
from server.engine.native.layers import NotLlamaLike
from server.engine.runner.forward import ModelForward
from server.engine.runner.graphs import CudaCapture, Graphs, buckets_for
from server.engine.runner.runner import Runner, RunnerParts
from server.engine.runner.self_test import capture_and_test, check_model, example_steps
from server.engine.sampling.sampler import argmax
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

logger = logging.getLogger(__name__)

_TRIAL_SLAB = 32
"""Page size for the trial if a page holds a whole sequence: more tokens than a trial uses."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that depend on the device."""

    device: str
    loaded: LoadedModel
    backend: AttentionBackend
    size: Sizes
    prefix_bytes: int
    pool: KvPool
    layout: Callable[[Tensor], Tensor]
    """Converts a prefix's keys and values to the backend's layout, in host memory."""
    copy: Callable[[Tensor], Tensor] | None
    """Copies a prefix from host memory to the device; None if they are the same memory."""


def assemble(config: m.EngineConfig) -> Assembly:
    """Load the model, choose the attention backend, test both, and allocate the KV pool.

    Raises `UnsupportedModel` and OSError for the model, `NativeUnavailable` and `NotLlamaLike` if
    the settings require the compiled layers, and ValueError if the settings do not fit together.
    """
    device = choose_device(config.device)
    if config.quantization != "none" and (
        device != "cpu" or config.attention not in ("auto", "native")
    ):
        raise ValueError("quantization needs the compiled layers: attention=native on a CPU")
    backend = _backend(config.attention, device)
    dtype = choose_dtype(config.dtype, device)
    loaded = load(config.model, dtype=dtype, device=device, backend=backend)
    config = _within_context(config, loaded.context)
    reference = reference_of(loaded)  # before anything of the model is replaced
    if config.attention in ("auto", "native") and device == "cpu":
        backend = _native(config, loaded) or backend
        # The trial of the compiled layers has registered other backends.
        interface.register(backend.attend)
    if isinstance(backend, CpuBackend):
        prepack(loaded.model)
    if device == "cuda":
        from server.engine.model.fuse import fuse  # CPU machines lack Triton

        fuse(loaded.model)
    budget = _cuda_budget(config, loaded) if device == "cuda" else cpu_budget(config)
    size = sizes(config, loaded, budget.kv, paged=not isinstance(backend, CpuBackend))
    new_pool, layout = _layout(backend)
    _check(reference, loaded, backend, int8=config.quantization == "int8")
    pool = new_pool(loaded.spec, num_pages=size.num_pages, page_size=size.page_size, device=device)
    num_rows = max(buckets_for(config.max_num_batched_tokens)[-1], config.max_num_batched_tokens)
    capacity = BatchCapacity(loaded.num_heads, num_rows, config.max_num_seqs, size.max_model_len)
    backend.allocate(pool, capacity)
    copy = SideCopy(device) if device == "cuda" else None
    return Assembly(device, loaded, backend, size, budget.prefixes, pool, layout, copy)


def make_runner(
    parts: Assembly, config: m.EngineConfig, prefix_of: Callable[[Digest], ResidentPrefix]
) -> Runner:
    """Build the runner, with CUDA graphs if they pass their test.

    Call it before any sequence runs: the test writes to the pool.
    """
    forward = _forward(parts.loaded, parts.backend)
    return Runner(
        RunnerParts(
            forward,
            parts.backend,
            prefix_of,
            eos_token_ids=parts.loaded.eos_token_ids,
            argmax=parts.backend.argmax if isinstance(parts.backend, NativeBackend) else argmax,
            graphs=_graphs(parts, config, forward),
        )
    )


def _graphs(parts: Assembly, config: m.EngineConfig, forward: ModelForward) -> Graphs | None:
    device = parts.loaded.model.device
    if device.type != "cuda" or not parts.backend.graph_safe:
        return None
    graphs = Graphs(
        forward,
        CudaCapture(),
        max_num_tokens=config.max_num_batched_tokens,
        max_num_rows=max(2, config.max_num_seqs),
        device=device,
    )
    steps = example_steps(parts.loaded.spec, parts.loaded.vocab_size, device)
    return capture_and_test(graphs, forward, parts.backend, steps)


def _forward(loaded: LoadedModel, backend: AttentionBackend) -> ModelForward:
    bare_forward = backend.bare_forward if isinstance(backend, NativeBackend) else None
    return ModelForward(loaded.model, bare_forward)


def _check(
    reference: Reference, loaded: LoadedModel, backend: AttentionBackend, *, int8: bool
) -> None:
    """Raise `UnsupportedModel` if the engine's logits differ from the model's.

    This uses a small pool of its own: the serving pool may have fewer pages than the test needs.
    """
    new_pool, layout = _layout(backend)
    page_size = _TRIAL_SLAB if isinstance(backend, CpuBackend) else PAGE_SIZE
    pool = new_pool(loaded.spec, num_pages=3, page_size=page_size, device=str(loaded.model.device))
    backend.allocate(
        pool, BatchCapacity(loaded.num_heads, max_num_rows=16, max_num_seqs=2, max_seq_len=64)
    )
    num_tokens = reference.prefix.shape[3]
    prefix = ResidentPrefix(layout(reference.prefix), num_tokens, num_tokens)
    limit = ANY_LIMIT if int8 else MODEL_LIMITS[getattr(torch, loaded.spec.dtype)]
    check_model(reference, _forward(loaded, backend), backend, prefix, limit)


def _layout(backend: AttentionBackend) -> tuple[type[KvPool], Callable[[Tensor], Tensor]]:
    """Return a backend's class of pool, and the conversion of prefixes to its layout."""
    return (BlockPool, to_blocks) if isinstance(backend, NativeBackend) else (KvPool, _unchanged)


def _within_context(config: m.EngineConfig, context: Context) -> m.EngineConfig:
    """Limit `max_model_len` to the context within which every request is exact."""
    if context.limited_by is None:
        return config
    limit = context.num_tokens
    logger.warning("max_model_len is at most %d: after that, %s", limit, context.limited_by)
    requested = config.max_model_len
    return replace(config, max_model_len=min(requested, limit) if requested else requested)


def _backend(name: str, device: str) -> AttentionBackend:
    if name in ("cpu", "native", "triton") and (name == "triton") != (device == "cuda"):
        raise ValueError(f"attention={name} does not run on device={device}; use attention=auto")
    if name == "triton" or (name == "auto" and device == "cuda"):
        from server.engine.attention.triton import TritonBackend  # CPU machines lack Triton

        return TritonBackend()
    return RefBackend() if name == "ref" else CpuBackend()


def _native(config: m.EngineConfig, loaded: LoadedModel) -> NativeBackend | None:
    """Install the compiled layers, or return None if they are unavailable or slow.

    If the settings require them, raise `NativeUnavailable` or `NotLlamaLike` instead.
    """
    is_required = config.attention == "native" or config.quantization != "none"
    if not (is_required or has_wide_vectors()):
        return None
    try:
        backend = install(
            loaded.model,
            loaded.spec,
            config.num_threads or os.cpu_count() or 1,
            int8=config.quantization == "int8",
            max_model_len=config.max_model_len or loaded.max_positions,
        )
    except (NativeUnavailable, NotLlamaLike) as exc:
        if is_required:
            raise
        logger.warning("running without the compiled layers, which is slower: %s", exc)
        return None
    torch.set_num_threads(1)  # leave the cores to the threads of the compiled layers
    return backend


def _cuda_budget(config: m.EngineConfig, loaded: LoadedModel) -> Budget:
    reserved = activation_bytes(
        num_tokens=buckets_for(config.max_num_batched_tokens)[-1],
        num_rows=config.max_num_seqs,
        hidden_size=loaded.spec.hidden_size,
        vocab_size=loaded.vocab_size,
        itemsize=loaded.model.dtype.itemsize,
    )
    torch.cuda.empty_cache()  # frees memory that only loading needed
    num_free_bytes, _ = torch.cuda.mem_get_info()
    return cuda_budget(config, num_free_bytes=num_free_bytes, num_reserved_bytes=reserved)


def _unchanged(kv: Tensor) -> Tensor:
    return kv
