"""The decoder layers of a Llama-like model as one compiled call, replacing those of transformers.

transformers still loads the weights, embeds the tokens, computes the rotary angles (including the
model's RoPE scaling) and applies the last norm. A model qualifies by its structure and then by its
logits: if anything differs, it keeps its own layers.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import (
    AttentionCall,
    QuerySpan,
    Segment,
    Step,
    UnsupportedSegment,
)
from server.engine.memory.kv_pool import KvPool
from server.engine.native.blocks import BLOCK
from server.engine.native.linear import LANES, PackedWeight
from server.engine.native.structs import CGroup, CLayer, CModel, CSpan, CStep, CWeight
from server.engine.native.team import ThreadTeam

_UNSUPPORTED = "the compiled layers attend to a prefix and to the sequence's own keys only"


class NotLlamaLike(Exception):
    """The compiled layers do not compute this model. The message says what differs."""


class NativeLayers(nn.Module):
    """All decoder layers as one module. Call `plan` before the forward of each step.

    `calls` holds each layer's attention arguments. Raises `NotLlamaLike`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: BaseModelSpec,
        team: ThreadTeam,
        calls: list[AttentionCall],
        *,
        int8: bool = False,
    ) -> None:
        super().__init__()
        _check_geometry(model, spec)
        if len({call.scaling for call in calls}) != 1:
            raise NotLlamaLike("its layers scale attention differently")
        layers = list(model.get_submodule("model.layers").children())
        self.team = team
        self._int8 = int8
        self._is_bf16 = int(model.dtype is torch.bfloat16)
        self._keep: list[Any] = []  # memory that C holds pointers to
        self._layers = (CLayer * len(layers))(*map(self._pack_layer, layers, calls))
        self._model = CModel(
            self._layers, len(layers), spec.hidden_size, model.config.num_attention_heads,
            spec.num_kv_heads, spec.head_dim, model.config.intermediate_size,
            _eps(layers[0].input_layernorm), calls[0].scaling,
        )  # fmt: skip
        self._pool: KvPool | None = None
        self._step: CStep | None = None

    def allocate(self, pool: KvPool) -> None:
        self._pool = pool

    def plan(self, step: Step) -> None:
        """Convert a step to the structs of structs.h. A C group is a run of spans with the same
        prefix, or with none.

        Raises `UnsupportedSegment` if a row attends to more than a prefix and its own keys.
        """
        assert self._pool is not None
        spans, groups = (CSpan * len(step.spans))(), []
        pages: list[int] = []
        prefixes = _prefixes(step)
        for i, span in enumerate(step.spans):
            spans[i] = CSpan(span.begin, span.num_tokens, span.num_computed_tokens, len(pages))
            pages.extend(span.pages)
            if i == 0 or prefixes[i] is not prefixes[i - 1]:
                groups.append(_group(prefixes[i], i))
            groups[-1].last_span = i + 1
        c_groups = (CGroup * len(groups))(*groups)
        c_pages = (c_int32 * len(pages))(*pages)
        num_rows = step.spans[-1].end
        self._step = CStep(
            num_rows, len(spans), len(groups), self._pool.page_size,
            ctypes.addressof(spans), ctypes.addressof(c_groups), ctypes.addressof(c_pages),
            self._pool.pages.data_ptr(),
        )  # fmt: skip
        self._step_memory = (spans, c_groups, c_pages)

    def forward(
        self, hidden: Tensor, *args: Any, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Tensor:
        """Run all layers on [1, T, hidden_size]; returns the same shape.

        Raises `NotLlamaLike` if the rotary angles do not cover the whole head.
        """
        step = self._step
        assert step is not None
        hidden = hidden.contiguous()
        cos, sin = (angle.to(hidden.dtype).contiguous() for angle in position_embeddings)
        if not cos.numel() == sin.numel() == hidden.shape[1] * self._model.head_dim:
            raise NotLlamaLike(f"it rotates {cos.shape[-1]} of {self._model.head_dim} dimensions")
        result = torch.empty_like(hidden)
        step.cos, step.sin = cos.data_ptr(), sin.data_ptr()
        step.hidden, step.result = hidden.data_ptr(), result.data_ptr()
        self.team.lib.foreword_layers(
            self.team.handle, self._is_bf16, ctypes.byref(self._model), ctypes.byref(step)
        )
        return result

    def _pack_layer(self, layer: Any, call: AttentionCall) -> CLayer:
        _check_layer(layer)
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        gate_up = [mlp.gate_proj, mlp.up_proj]
        query_norm, key_norm = (
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
        )
        return CLayer(
            self._weight(torch.cat([p.weight for p in qkv]), _cat_bias(qkv)),
            self._weight(attention.o_proj.weight, attention.o_proj.bias),
            self._weight(_interleave([p.weight for p in gate_up]), None),
            self._weight(mlp.down_proj.weight, mlp.down_proj.bias),
            self._vector(layer.input_layernorm), self._vector(layer.post_attention_layernorm),
            self._vector(query_norm), self._vector(key_norm),
            call.sliding_window or 0,
        )  # fmt: skip

    def _weight(self, weight: Tensor, bias: Tensor | None) -> CWeight:
        packed = PackedWeight(weight, bias, int8=self._int8)
        self._keep.append(packed)
        return packed.as_c()

    def _vector(self, norm: Any) -> int | None:
        if norm is None:
            return None
        vector = norm.weight.detach().float().contiguous()
        self._keep.append(vector)
        pointer: int = vector.data_ptr()
        return pointer


def _prefixes(step: Step) -> list[Segment | None]:
    """Return the segment of each span's prefix, or None. Raises `UnsupportedSegment`."""
    segments = step.segments_beside_own()
    if segments is None:
        raise UnsupportedSegment(_UNSUPPORTED)
    prefixes: list[Segment | None] = [None] * len(step.spans)
    first = {span.begin: i for i, span in enumerate(step.spans)}
    for segment in segments:
        i, row = first.get(segment.begin, len(prefixes)), segment.begin
        while row < segment.end:
            span = step.spans[i] if i < len(prefixes) and prefixes[i] is None else None
            if span is None or not _is_prefix(segment, span):
                raise UnsupportedSegment(_UNSUPPORTED)
            prefixes[i] = segment
            row, i = span.end, i + 1
    return prefixes


def _is_prefix(segment: Segment, span: QuerySpan) -> bool:
    """Return whether a segment is the prefix of a span, at the positions before its own keys."""
    return (
        segment.kv is not None
        and segment.bias is None
        and segment.first_position == 0
        and segment.num_keys == span.num_prefix_tokens
        and span.end <= segment.end
    )


def _group(prefix: Segment | None, index: int) -> CGroup:
    if prefix is None or prefix.kv is None:
        return CGroup(None, 0, 0, index, index + 1)
    kv = prefix.kv
    return CGroup(kv.data_ptr(), prefix.num_keys, kv.shape[3], index, index + 1)


def _check_geometry(model: PreTrainedModel, spec: BaseModelSpec) -> None:
    config = model.config
    sizes = {"hidden_size": spec.hidden_size, "head_dim": spec.head_dim}
    sizes["intermediate_size"] = getattr(config, "intermediate_size", 0)
    for name, size in sizes.items():
        if not size or size % BLOCK:
            raise NotLlamaLike(f"{name} {size} is not a multiple of {BLOCK}")
    if spec.head_dim > 256:
        raise NotLlamaLike(f"head_dim {spec.head_dim} is larger than 256")
    if getattr(config, "hidden_act", None) != "silu":
        raise NotLlamaLike("its MLP is not gated by SiLU")
    if not hasattr(getattr(model, "model", None), "layers"):
        raise NotLlamaLike("it has no model.layers")


def _check_layer(layer: Any) -> None:
    parts = {
        "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("gate_proj", "up_proj", "down_proj"),
        "input_layernorm": ("weight",),
        "post_attention_layernorm": ("weight",),
    }
    for part, names in parts.items():
        for name in names:
            if not hasattr(getattr(layer, part, None), name):
                raise NotLlamaLike(f"its layers have no {part}.{name}")
    if layer.mlp.gate_proj.bias is not None:
        raise NotLlamaLike("its MLP has biases")


def _eps(norm: Any) -> float:
    eps: float | None = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    if eps is None:
        raise NotLlamaLike("its norm has no epsilon")
    return eps


def _cat_bias(linears: list[Any]) -> Tensor | None:
    biases = [linear.bias for linear in linears if linear.bias is not None]
    if len(biases) not in (0, len(linears)):
        raise NotLlamaLike("only some of its projections have biases")
    return torch.cat(biases) if biases else None


def _interleave(weights: list[Tensor]) -> Tensor:
    """Interleave the rows of two weights: 16 of the first, 16 of the second, and so on."""
    return torch.stack([w.view(-1, LANES, w.shape[1]) for w in weights], dim=1).flatten(0, 2)
