"""The decoder layers of a Llama-like model as one compiled call, replacing those of transformers.

transformers still loads the weights, embeds the tokens, computes the rotary angles (including the
model's RoPE scaling) and applies the last norm. A model qualifies by its structure and then by its
logits: if anything differs, it keeps its own layers.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from prefix_store.prefix import BaseModelSpec
from server.engine.attention.base import AttentionCall, Span, Step
from server.engine.memory.kv_pool import KvPool
from server.engine.native.blocks import BLOCK, pack_size
from server.engine.native.build import library
from server.engine.native.memory import in_huge_pages

_LANES = 16
_INNER = 32
_ROWS = 32


class _CWeight(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p), ("bias", c_void_p), ("scales", c_void_p), ("n", c_int32), ("k", c_int32)
    ]  # fmt: skip


class _CLayer(ctypes.Structure):
    _fields_ = [
        ("qkv", _CWeight), ("out", _CWeight), ("gate_up", _CWeight), ("down", _CWeight),
        ("input_norm", c_void_p), ("post_norm", c_void_p),
        ("query_norm", c_void_p), ("key_norm", c_void_p),
        ("window", c_int32),
    ]  # fmt: skip


class _CModel(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(_CLayer)),
        ("num_layers", c_int32), ("hidden_size", c_int32), ("num_heads", c_int32),
        ("num_kv_heads", c_int32), ("head_dim", c_int32), ("intermediate_size", c_int32),
        ("norm_eps", c_float), ("scale", c_float),
    ]  # fmt: skip


class _CStep(ctypes.Structure):
    _fields_ = [
        ("num_rows", c_int32), ("num_spans", c_int32), ("num_groups", c_int32),
        ("page_size", c_int32),
        ("spans", c_void_p), ("groups", c_void_p), ("pages", c_void_p), ("pool", c_void_p),
        ("cos", c_void_p), ("sin", c_void_p), ("hidden", c_void_p), ("result", c_void_p),
    ]  # fmt: skip


class _CSpan(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("row", "num_rows", "start", "first_page")]


class _CGroup(ctypes.Structure):
    _fields_ = [
        ("prefix", c_void_p),
        ("num_tokens", c_int32), ("num_slots", c_int32),
        ("first_span", c_int32), ("last_span", c_int32),
    ]  # fmt: skip


class NotLlamaLike(Exception):
    """The compiled layers do not compute this model. The message says what differs."""


class ThreadTeam:
    """The compute threads of the compiled layers. They live as long as the process."""

    def __init__(self, num_threads: int) -> None:
        self.lib = library()
        self.lib.foreword_team.restype = c_void_p
        self.handle = c_void_p(self.lib.foreword_team(num_threads))

    def supports(self, dtype: torch.dtype) -> bool:
        if dtype is torch.bfloat16:
            return bool(self.lib.foreword_has_bf16())
        return dtype is torch.float32

    def argmax(self, x: Tensor) -> Tensor:
        """Return the index of each row's highest value; the first of equals, -1 if one is NaN.

        x: [num_rows, n]. Returns [num_rows], int64.
        """
        if not self.supports(x.dtype) or x.stride(1) != 1:
            x = x.float().contiguous()
        columns = torch.empty(len(x), dtype=torch.long)
        self.lib.foreword_argmax(
            self.handle, int(x.dtype is torch.bfloat16), c_void_p(x.data_ptr()),
            c_int64(x.stride(0)), *x.shape, c_void_p(columns.data_ptr()),
        )  # fmt: skip
        return columns


class _Weight:
    """A weight matrix [n, k] in the layout of gemm.h. It owns the memory that C points to.

    `int8` quantizes to 8-bit integers with one scale per output, its largest weight / 127.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, int8: bool) -> None:
        pack = pack_size(weight.dtype)
        weight = pad(weight.detach(), (0, -weight.shape[1] % _INNER, 0, -weight.shape[0] % _LANES))
        n, self.k = weight.shape
        self.scales = None
        if int8:
            self.scales = weight.float().abs().amax(1).clamp(min=1e-12) / 127
            weight = (weight.float() / self.scales[:, None]).round().to(torch.int8)
        blocks = weight.view(n // _LANES, _LANES, self.k // pack, pack)
        self.data = in_huge_pages(blocks.transpose(1, 2))  # [n / 16, k / pack, 16, pack]
        self.bias = None if bias is None else pad(bias.detach().float(), (0, n - len(bias)))
        self.n = n

    def as_c(self) -> _CWeight:
        bias, scales = (None if x is None else x.data_ptr() for x in (self.bias, self.scales))
        return _CWeight(self.data.data_ptr(), bias, scales, self.n, self.k)


class NativeLinear(nn.Module):
    """A frozen `nn.Linear` as compiled code, for the model's head."""

    def __init__(self, linear: nn.Linear, team: ThreadTeam, *, int8: bool = False) -> None:
        super().__init__()
        self._weight = _Weight(linear.weight, linear.bias, int8=int8)
        self.team = team
        self._out_features = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map [1, T, in_features] to [1, T, out_features]."""
        rows = x.shape[1]
        padded = pad(x[0], (0, self._weight.k - x.shape[2], 0, -rows % _ROWS))
        out = x.new_empty(rows, self._weight.n)
        is_bf16 = x.dtype is torch.bfloat16
        weight = self._weight.as_c()
        self.team.lib.foreword_linear(
            self.team.handle, int(is_bf16), ctypes.byref(weight),
            c_void_p(padded.data_ptr()), rows, c_void_p(out.data_ptr()),
        )  # fmt: skip
        return out[None, :, : self._out_features]


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
        self._layers = (_CLayer * len(layers))(*map(self._pack_layer, layers, calls))
        self._model = _CModel(
            self._layers, len(layers), spec.hidden_size, model.config.num_attention_heads,
            spec.num_kv_heads, spec.head_dim, model.config.intermediate_size,
            _eps(layers[0].input_layernorm), calls[0].scaling,
        )  # fmt: skip
        self._pool: KvPool | None = None
        self._step: _CStep | None = None

    def allocate(self, pool: KvPool) -> None:
        self._pool = pool

    def plan(self, step: Step) -> None:
        """Convert a step to the structs of layers.cpp. A C group is a run of spans with the same
        prefix, or with none."""
        assert self._pool is not None
        spans, groups = (_CSpan * len(step.spans))(), []
        pages: list[int] = []
        for i, span in enumerate(step.spans):
            spans[i] = _CSpan(span.begin, span.num_tokens, span.start, len(pages))
            pages.extend(span.pages)
            if i == 0 or span.prefix is not step.spans[i - 1].prefix:
                groups.append(_group(span, i))
            groups[-1].last_span = i + 1
        c_groups = (_CGroup * len(groups))(*groups)
        c_pages = (c_int32 * len(pages))(*pages)
        num_rows = step.spans[-1].end
        self._step = _CStep(
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

    def _pack_layer(self, layer: Any, call: AttentionCall) -> _CLayer:
        _check_layer(layer)
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        gate_up = [mlp.gate_proj, mlp.up_proj]
        query_norm, key_norm = (
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
        )
        return _CLayer(
            self._weight(torch.cat([p.weight for p in qkv]), _cat_bias(qkv)),
            self._weight(attention.o_proj.weight, attention.o_proj.bias),
            self._weight(_in_turn([p.weight for p in gate_up]), None),
            self._weight(mlp.down_proj.weight, mlp.down_proj.bias),
            self._vector(layer.input_layernorm), self._vector(layer.post_attention_layernorm),
            self._vector(query_norm), self._vector(key_norm),
            call.sliding_window or 0,
        )  # fmt: skip

    def _weight(self, weight: Tensor, bias: Tensor | None) -> _CWeight:
        packed = _Weight(weight, bias, int8=self._int8)
        self._keep.append(packed)
        return packed.as_c()

    def _vector(self, norm: Any) -> int | None:
        if norm is None:
            return None
        vector = norm.weight.detach().float().contiguous()
        self._keep.append(vector)
        pointer: int = vector.data_ptr()
        return pointer


def _group(span: Span, index: int) -> _CGroup:
    if span.prefix is None:
        return _CGroup(None, 0, 0, index, index + 1)
    kv = span.prefix.kv
    return _CGroup(kv.data_ptr(), span.num_prefix_tokens, kv.shape[3], index, index + 1)


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


def _in_turn(weights: list[Tensor]) -> Tensor:
    """Interleave the rows of two weights: 16 of the first, 16 of the second, and so on."""
    return torch.stack([w.view(-1, _LANES, w.shape[1]) for w in weights], dim=1).flatten(0, 2)
