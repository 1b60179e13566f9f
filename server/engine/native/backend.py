"""Puts the compiled layers into a loaded model, if they compute the same as its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import ATTENTION_NAME, AttentionBackend, Bounds, Group, Span, Step
from server.engine.attention.ref import RefBackend
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.native.bare_forward import BareForward
from server.engine.native.blocks import BlockPool, to_blocks
from server.engine.native.build import NativeUnavailable
from server.engine.native.layers import (
    AttentionCall,
    NativeLayers,
    NativeLinear,
    NotLlamaLike,
    ThreadTeam,
)

logger = logging.getLogger(__name__)

PAGE_SIZE = 16
_NUM_POSITIONS = 64
"""More than a trial takes."""
Run = Callable[..., Tensor]
"""`PreTrainedModel.forward`'s arguments -> logits of the rows to keep."""
_MAX_RELATIVE_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_MAX_RELATIVE_ERROR_INT8 = 0.25  # a wrong layer gives 1 and more


class NativeBackend:
    """Attention is part of the compiled layers: it is planned here and called by nobody."""

    name = "native"
    graph_safe = False

    def __init__(self, layers: NativeLayers) -> None:
        self.layers = layers
        self.bare_forward: BareForward | None = None
        """The model's forward, where that is known to do no more."""

    def allocate(self, pool: KvPool, bounds: Bounds | None = None) -> None:
        self.layers.allocate(pool)

    def plan(self, step: Step) -> None:
        self.layers.plan(step)

    def argmax(self, logits: Tensor) -> Tensor:
        """`sampler.Argmax`, by the threads of the layers."""
        return self.layers.team.argmax(logits)

    def attend(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        raise AssertionError("the compiled layers do not call transformers' attention")


class AttentionRecorder(RefBackend):
    """The oracle, which also notes how the model's layers call attention."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, AttentionCall] = {}

    def attend(self, module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
            raise NotLlamaLike("its attention has a soft cap or sinks")
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        call = AttentionCall(scaling, kwargs.get("sliding_window") or 0)
        self._calls[module.layer_idx] = call
        return super().attend(module, query, *args, **kwargs)

    def calls(self) -> list[AttentionCall]:
        """By layer."""
        return [call for _, call in sorted(self._calls.items())]


def install(
    model: PreTrainedModel,
    spec: BaseModelSpec,
    num_threads: int,
    *,
    int8: bool = False,
    max_model_len: int = 0,
) -> NativeBackend:
    """Replace the layers and the head of `model`; `int8`: with their weights as 8-bit integers.

    They are tried at the first positions and near the last before `max_model_len`: some families
    scale attention from some position on. Raises `NativeUnavailable` and `NotLlamaLike`, with the
    model as it was. What was tried may still be registered as the attention: the caller registers
    the one that it uses in the end.
    """
    team = ThreadTeam(num_threads)
    if not team.supports(model.dtype):
        raise NativeUnavailable(f"this processor does not multiply {model.dtype}")
    _check_scaling(model.config, max_model_len)
    last_position = max(0, max_model_len - _NUM_POSITIONS)
    try:
        return _install(model, spec, team, last_position, int8=int8)
    except NotLlamaLike:
        raise
    except Exception as exc:  # a family that is built otherwise, wherever that shows
        raise NotLlamaLike(f"they do not run: {type(exc).__name__}: {exc}") from exc


def _check_scaling(config: PretrainedConfig, max_model_len: int) -> None:
    """Raises `NotLlamaLike` for a scale that a trial in bfloat16 would take for rounding."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or max_model_len
    if rope.get("llama_4_scaling_beta") and max_model_len > original:
        raise NotLlamaLike(f"it scales attention from position {original} on")


def _install(
    model: PreTrainedModel, spec: BaseModelSpec, team: ThreadTeam, last_position: int, *, int8: bool
) -> NativeBackend:
    reference, pool = (
        AttentionRecorder(),
        KvPool(spec, num_pages=4, page_size=PAGE_SIZE, device="cpu"),
    )
    reference.allocate(pool)
    kv = _own_prefix(model, reference, pool)
    num_tokens = kv.shape[3]
    by_model = partial(_by_model, model)
    steps = _steps(ResidentPrefix(kv, num_tokens, num_tokens), last_position)
    expected = [_forward(model, by_model, reference, *step) for step in steps]
    backend = NativeBackend(NativeLayers(model, spec, team, reference.calls(), int8=int8))
    head = NativeLinear(model.lm_head, team, int8=int8)
    with _in_place(model, nn.ModuleList([backend.layers]), head):
        backend.allocate(BlockPool(spec, num_pages=4, page_size=PAGE_SIZE, device="cpu"))
        steps = _steps(ResidentPrefix(to_blocks(kv), num_tokens, num_tokens), last_position)
        got = [_forward(model, by_model, backend, *step) for step in steps]
        errors = [_relative_error(*pair) for pair in zip(expected, got, strict=True)]
        limit = _MAX_RELATIVE_ERROR_INT8 if int8 else _MAX_RELATIVE_ERROR[model.dtype]
        if not all(error <= limit for error in errors):
            raise NotLlamaLike(f"its logits differ by {max(errors):.1e} of their norm")
        direct = BareForward(model)
        if torch.equal(got[-1], _forward(model, direct, backend, *steps[-1])):
            backend.bare_forward = direct
    return backend


@contextmanager
def _in_place(model: PreTrainedModel, layers: nn.ModuleList, head: nn.Module) -> Iterator[None]:
    """From here on, unless an exception leaves."""
    own_layers, own_head = model.model.layers, model.lm_head
    model.model.layers, model.lm_head = layers, head
    try:
        yield
    except BaseException:
        model.model.layers, model.lm_head = own_layers, own_head
        raise


def _relative_error(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).norm() / expected.norm())


def _by_model(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    logits: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits


def _steps(prefix: ResidentPrefix, last_position: int) -> list[tuple[list[Span], int]]:
    """A prompt after a prefix and one without, a token of each, and the same as if they stood near
    the end of the context: spans, and the position of the first token there is."""
    prompts = [Span(0, 0, 17, 0, [2, 0], prefix), Span(1, 17, 5, 0, [1], None)]
    tokens = [Span(0, 0, 1, 17, [2, 0], prefix), Span(1, 1, 1, 5, [1], None)]
    return [(prompts, 0), (tokens, 0), (tokens, last_position)]


def _own_prefix(model: PreTrainedModel, backend: AttentionBackend, pool: KvPool) -> Tensor:
    """What the model itself makes of some tokens: [num_layers, 2, num_kv_heads, L, head_dim]."""
    pages = [0, 1, 2]
    num_tokens = 2 * PAGE_SIZE + 5
    _forward(model, partial(_by_model, model), backend, [Span(0, 0, num_tokens, 0, pages, None)])
    return pool.read(pages, num_tokens)


@torch.inference_mode()
def _forward(
    model: PreTrainedModel,
    run: Run,
    backend: AttentionBackend,
    spans: list[Span],
    first_position: int = 0,
) -> Tensor:
    AttentionInterface.register(ATTENTION_NAME, backend.attend)
    num_rows = spans[-1].end
    ids = (torch.arange(num_rows) * 31 % model.config.vocab_size)[None]
    starts = [first_position + span.num_prefix_tokens + span.start for span in spans]
    positions = [
        start + i for start, s in zip(starts, spans, strict=True) for i in range(s.num_tokens)
    ]
    groups = [Group(s.begin, s.end, s.prefix) for s in spans if s.prefix is not None]
    step = Step(ids, torch.tensor([positions]), torch.arange(num_rows), spans, groups)
    backend.plan(step)
    return run(
        input_ids=step.input_ids, position_ids=step.position_ids, logits_to_keep=step.logit_rows
    ).float()
