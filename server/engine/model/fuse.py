"""Fused modules for CUDA: norms, packed projections, gated MLPs, rotary embeddings.

Modules are found by structure and replaced one by one, but only if the replacement returns the same
on random input. The layers of transformers stay, and call the replacements.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from triton import next_power_of_2

from server.engine.model import fuse_kernels as kernels
from server.engine.model.numerics import MODULE_LIMITS, agree

logger = logging.getLogger(__name__)


_ROTARY = "apply_rotary_pos_emb"
_GATE_BLOCK = 1024


class RmsNorm(nn.Module):
    """RMSNorm as one kernel. `weight_offset` is 1 if the family stores weights minus 1."""

    def __init__(self, norm: nn.Module, weight_offset: float) -> None:
        super().__init__()
        self.weight = norm.weight
        self._eps = float(getattr(norm, "variance_epsilon", None) or norm.eps)  # type: ignore[arg-type]
        self._weight_offset = weight_offset

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, *x.shape[-2:])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        num_outer, num_inner, size = rows.shape
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kernels.rms_norm[(num_outer * num_inner,)](
            rows, self.weight, out, rows.stride(0), rows.stride(1), num_inner, self._eps,
            SIZE=size, BLOCK=next_power_of_2(size), WEIGHT_OFFSET=self._weight_offset,
        )  # fmt: skip
        return out


class PackedLinears(nn.Module):
    """Linears that have the same input, as one product."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        self._sizes = [linear.out_features for linear in linears]
        self.weight = nn.Parameter(_cat([linear.weight for linear in linears]), requires_grad=False)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self.bias = nn.Parameter(_cat(biases), requires_grad=False) if biases else None

    @staticmethod
    def accepts(*linears: object) -> bool:
        """Return whether these are plain linears of one input size, all with or without a bias."""
        plain = [linear for linear in linears if type(linear) is nn.Linear]
        same = {(linear.in_features, linear.bias is None) for linear in plain}
        return len(plain) == len(linears) and len(same) == 1

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(self(x), self._sizes, dim=-1)


class PackedOutput(nn.Module):
    """The replacement of one packed linear. The first of them to be called computes all outputs."""

    def __init__(self, packed: PackedLinears, index: int, shared: dict[int, Tensor]) -> None:
        super().__init__()
        self._packed = packed
        self._index = index
        self._shared = shared
        """Outputs not yet returned, by index, and their input under -1."""

    def forward(self, x: Tensor) -> Tensor:
        shared = self._shared
        if shared.get(-1) is not x or self._index not in shared:
            shared.update(enumerate(self._packed.split(x)))
            shared[-1] = x
        output = shared.pop(self._index)
        if len(shared) == 1:
            shared.clear()
        return output


class GatedMlp(nn.Module):
    """An MLP gated by SiLU or GELU (tanh form), with gate and up packed into one product."""

    def __init__(self, mlp: nn.Module, *, is_gelu: bool) -> None:
        super().__init__()
        assert isinstance(mlp.gate_proj, nn.Linear)
        assert isinstance(mlp.up_proj, nn.Linear)
        self.gate_up = PackedLinears(mlp.gate_proj, mlp.up_proj)
        self.down_proj = mlp.down_proj
        self._is_gelu = is_gelu

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        *shape, double = gate_up.shape
        out = gate_up.new_empty(*shape, double // 2)
        num_blocks = -(-double // 2 // _GATE_BLOCK)
        kernels.gate[(out.numel() // (double // 2), num_blocks)](
            gate_up, out, SIZE=double // 2, BLOCK=_GATE_BLOCK, IS_GELU=self._is_gelu
        )
        y: Tensor = self.down_proj(out)  # type: ignore[operator]
        return y


class Rotary:
    """A replacement of `apply_rotary_pos_emb` of transformers, to which it leaves other shapes."""

    def __init__(self, original: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self._original = original

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if args or kwargs or q.shape[0] != 1 or cos.shape != (1, *q.shape[2:]):
            return self._original(q, k, cos, sin, *args, **kwargs)
        return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    _, num_heads, num_rows, size = x.shape
    x = x[0] if x.stride(-1) == 1 else x[0].contiguous()
    out = x.new_empty(num_rows, num_heads, size)
    kernels.rotate[(num_rows,)](
        x, cos.contiguous(), sin.contiguous(), out, x.stride(0), x.stride(1),
        NUM_HEADS=num_heads, HALF=size // 2,
        BLOCK_H=next_power_of_2(num_heads), BLOCK_D=next_power_of_2(size // 2),
    )  # fmt: skip
    return out.transpose(0, 1)[None]


@torch.inference_mode()
def fuse(model: PreTrainedModel) -> Counter[str]:
    """Replace modules of `model` in place; returns the number replaced of each kind.

    A module whose replacement returns other values, or does not compile on this device, stays.
    """
    fused: Counter[str] = Counter()
    _fuse_below(model, torch.empty(0, dtype=model.dtype, device=model.device), fused)
    logger.info("fused: %s", dict(fused))
    return +fused


def _fuse_below(parent: nn.Module, like: Tensor, fused: Counter[str]) -> None:
    """Fuse the modules below `parent`, depth first: only one layer's weights exist twice."""
    fused["qkv"] += _fuse_qkv(parent)
    fused["rotary"] += _fuse_rotary(parent, like)
    for name, child in list(parent.named_children()):
        fused["norm"] += _replace(parent, name, _norms(child))
        fused["mlp"] += _replace(parent, name, _mlps(child))
        _fuse_below(getattr(parent, name), like, fused)


def _replace(parent: nn.Module, name: str, candidates: Iterator[tuple[nn.Module, int]]) -> bool:
    """Replace a child by the first candidate that agrees with it on random input.

    `candidates`: pairs of a module and its input size.
    """
    original, candidate = getattr(parent, name), None
    for candidate, size in candidates:
        x = _noise(1, 3, size, like=next(original.parameters()))
        if _agrees(original, candidate, x):
            setattr(parent, name, candidate)
            return True
    if candidate is not None:
        logger.warning("not fusing %s: it computes something else", type(original).__name__)
    return False


def _norms(module: Any) -> Iterator[tuple[nn.Module, int]]:
    is_norm = type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight")
    if is_norm and (hasattr(module, "variance_epsilon") or hasattr(module, "eps")):
        for weight_offset in (0.0, 1.0):
            yield RmsNorm(module, weight_offset), len(module.weight)


def _mlps(module: Any) -> Iterator[tuple[nn.Module, int]]:
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    if all(hasattr(module, name) for name in names) and PackedLinears.accepts(
        module.gate_proj, module.up_proj
    ):
        for is_gelu in (False, True):
            yield GatedMlp(module, is_gelu=is_gelu), module.gate_proj.in_features


def _fuse_qkv(attention: nn.Module) -> bool:
    names = ("q_proj", "k_proj", "v_proj")
    linears = [getattr(attention, name, None) for name in names]
    if not PackedLinears.accepts(*linears):
        return False
    packed = PackedLinears(*linears)  # type: ignore[arg-type]
    x = _noise(1, 3, packed.weight.shape[1], like=packed.weight)
    if not _agrees(lambda x: torch.cat([f(x) for f in linears if f is not None], -1), packed, x):
        return False
    shared: dict[int, Tensor] = {}
    for index, name in enumerate(names):
        setattr(attention, name, PackedOutput(packed, index, shared))
    return True


def _fuse_rotary(attention: nn.Module, like: Tensor) -> bool:
    """Replace the rotary embedding of one attention module.

    The function is a global of the family's Python module, so the attention module gets a copy of
    its `forward` with other globals. Other models of the family in this process keep theirs.
    """
    forward: Any = type(attention).forward
    if not isinstance(forward, FunctionType) or _ROTARY not in forward.__code__.co_names:
        return False
    original = forward.__globals__[_ROTARY]
    rotary = Rotary(original)
    shapes = (1, 4, 3, 16), (1, 2, 3, 16), (1, 3, 16), (1, 3, 16)
    inputs = [_noise(*shape, like=like, seed=seed) for seed, shape in enumerate(shapes)]
    if not all(
        _agrees(lambda *x, i=i: original(*x)[i], lambda *x, i=i: rotary(*x)[i], *inputs)
        for i in (0, 1)
    ):
        return False
    copy = FunctionType(
        forward.__code__, {**forward.__globals__, _ROTARY: rotary}, forward.__name__,
        forward.__defaults__, forward.__closure__,
    )  # fmt: skip
    copy.__kwdefaults__ = forward.__kwdefaults__
    attention.forward = MethodType(copy, attention)
    return True


def _agrees(
    original: Callable[..., Tensor], candidate: Callable[..., Tensor], *inputs: Tensor
) -> bool:
    try:
        return agree(original(*inputs), candidate(*inputs), MODULE_LIMITS[inputs[0].dtype])
    except Exception as exc:  # the kernel does not compile, or the original is not as expected
        logger.warning("not fusing: %s failed: %s", candidate, exc)
        return False


def _noise(*shape: int, like: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(like)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach() for tensor in tensors])
