"""Installation of the compiled layers in a loaded model, if their logits agree with its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention import interface
from server.engine.attention.base import (
    AttentionBackend,
    AttentionCall,
    BatchCapacity,
    QuerySpan,
    Segment,
    Step,
)
from server.engine.attention.ref import RefBackend
from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix
from server.engine.model.numerics import ANY_LIMIT, MODEL_LIMITS, relative_error
from server.engine.native.bare_forward import BareForward
from server.engine.native.blocks import BlockPool, to_blocks
from server.engine.native.build import NativeUnavailable
from server.engine.native.layers import NativeLayers, NotLlamaLike
from server.engine.native.linear import NativeLinear
from server.engine.native.team import ThreadTeam

PAGE_SIZE = 16
_NUM_POSITIONS = 64
"""Positions reserved for a trial: more than it uses."""
Run = Callable[..., Tensor]
"""Takes the arguments of `PreTrainedModel.forward`; returns the logits of the rows to keep."""


class NativeBackend:
    """The backend of the compiled layers. They contain attention, so `attend` is never called."""

    name = "native"
    graph_safe = False

    def __init__(self, layers: NativeLayers) -> None:
        self.layers = layers
        self.bare_forward: BareForward | None = None
        """A replacement of the model's forward; None unless it was found to return the same."""

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        self.layers.allocate(pool)

    def plan(self, step: Step) -> None:
        self.layers.plan(step)

    def argmax(self, logits: Tensor) -> Tensor:
        """Implements `sampler.Argmax` with the threads of the compiled layers."""
        return self.layers.team.argmax(logits)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        raise AssertionError("the compiled layers do not call transformers' attention")


class AttentionRecorder(RefBackend):
    """A reference backend that records the arguments with which each layer calls attention."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[int, AttentionCall] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        if call.softcap is not None or call.sinks is not None:
            raise NotLlamaLike("its attention has a soft cap or sinks")
        self._calls[layer] = call
        return super().attend(layer, q, k, v, call)

    def calls(self) -> list[AttentionCall]:
        """Return the recorded options of each layer."""
        return [call for _, call in sorted(self._calls.items())]


def install(
    model: PreTrainedModel,
    spec: BaseModelSpec,
    num_threads: int,
    *,
    int8: bool = False,
    max_model_len: int = 0,
) -> NativeBackend:
    """Replace the layers and the head of `model`. `int8` quantizes their weights to 8 bits.

    Their logits are compared with the model's own at the first positions and close to
    `max_model_len`, because some families scale attention from a certain position on.

    Raises `NativeUnavailable` or `NotLlamaLike`; the model is then unchanged. The trial registers
    its own attention with transformers: the caller must register the backend that it uses.
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
    except Exception as exc:  # a family with a different structure can fail anywhere
        raise NotLlamaLike(f"they do not run: {type(exc).__name__}: {exc}") from exc


def _check_scaling(config: PretrainedConfig, max_model_len: int) -> None:
    """Raise `NotLlamaLike` for a scale whose effect a bfloat16 trial cannot tell from rounding."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or max_model_len
    if rope.get("llama_4_scaling_beta") and max_model_len > original:
        raise NotLlamaLike(f"it scales attention from position {original} on")


def _install(
    model: PreTrainedModel, spec: BaseModelSpec, team: ThreadTeam, last_position: int, *, int8: bool
) -> NativeBackend:
    reference = AttentionRecorder()
    pool = KvPool(spec, num_pages=4, page_size=PAGE_SIZE, device="cpu")
    reference.allocate(pool)
    kv = _make_prefix(model, reference, pool)
    num_tokens = kv.shape[3]
    by_model = partial(_by_model, model)
    steps = _steps(num_tokens, last_position)
    prefix = ResidentPrefix(kv, num_tokens, num_tokens)
    expected = [_forward(model, by_model, reference, prefix, *step) for step in steps]
    backend = NativeBackend(NativeLayers(model, spec, team, reference.calls(), int8=int8))
    head = NativeLinear(model.lm_head, team, int8=int8)
    with _replacing(model, nn.ModuleList([backend.layers]), head):
        backend.allocate(BlockPool(spec, num_pages=4, page_size=PAGE_SIZE, device="cpu"))
        prefix = ResidentPrefix(to_blocks(kv), num_tokens, num_tokens)
        got = [_forward(model, by_model, backend, prefix, *step) for step in steps]
        errors = [relative_error(*pair) for pair in zip(expected, got, strict=True)]
        limit = ANY_LIMIT if int8 else MODEL_LIMITS[model.dtype]
        if not all(error <= limit for error in errors):
            raise NotLlamaLike(f"its logits differ by {max(errors):.1e} of their norm")
        bare_forward = BareForward(model)
        if torch.equal(got[-1], _forward(model, bare_forward, backend, prefix, *steps[-1])):
            backend.bare_forward = bare_forward
    return backend


@contextmanager
def _replacing(model: PreTrainedModel, layers: nn.ModuleList, head: nn.Module) -> Iterator[None]:
    """Replace a model's layers and head. If the block raises, restore them."""
    own_layers, own_head = model.model.layers, model.lm_head
    model.model.layers, model.lm_head = layers, head
    try:
        yield
    except BaseException:
        model.model.layers, model.lm_head = own_layers, own_head
        raise


def _by_model(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    logits: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits


def _steps(num_prefix_tokens: int, last_position: int) -> list[tuple[list[QuerySpan], int]]:
    """Return the steps of a trial, as spans and what is added to their positions.

    Two prompts, one after a prefix; then one token of each; then the same tokens at positions close
    to the end of the context.
    """
    prompts = [QuerySpan(0, 0, 17, 0, [2, 0], num_prefix_tokens), QuerySpan(1, 17, 5, 0, [1])]
    tokens = [QuerySpan(0, 0, 1, 17, [2, 0], num_prefix_tokens), QuerySpan(1, 1, 1, 5, [1])]
    return [(prompts, 0), (tokens, 0), (tokens, last_position)]


def _make_prefix(model: PreTrainedModel, backend: AttentionBackend, pool: KvPool) -> Tensor:
    """Compute a prefix from tokens: [num_layers, 2, num_kv_heads, L, head_dim]."""
    pages = [0, 1, 2]
    num_tokens = 2 * PAGE_SIZE + 5
    spans = [QuerySpan(0, 0, num_tokens, 0, pages)]
    _forward(model, partial(_by_model, model), backend, None, spans)
    return pool.read(pages, num_tokens)


@torch.inference_mode()
def _forward(
    model: PreTrainedModel,
    run: Run,
    backend: AttentionBackend,
    prefix: ResidentPrefix | None,
    spans: list[QuerySpan],
    offset: int = 0,
) -> Tensor:
    """Run spans, of which those with prefix tokens come after `prefix`; return all logits.

    `offset` is added to all position ids.
    """
    interface.register(backend.attend)
    num_rows = spans[-1].end
    ids = (torch.arange(num_rows) * 31 % model.config.vocab_size)[None]
    positions = [offset + s.first_position + i for s in spans for i in range(s.num_tokens)]
    segments = [
        Segment.of_prefix(s.begin, s.end, prefix)
        for s in spans
        if prefix is not None and s.num_prefix_tokens
    ]
    segments += map(Segment.own, spans)
    step = Step(ids, torch.tensor([positions]), torch.arange(num_rows), spans, segments)
    backend.plan(step)
    return run(
        input_ids=step.input_ids, position_ids=step.position_ids, logits_to_keep=step.logit_rows
    ).float()
