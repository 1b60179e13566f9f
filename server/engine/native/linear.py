"""Weight matrices in the layout of the compiled code, and a linear layer that uses one."""

from __future__ import annotations

import ctypes
from ctypes import c_void_p

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from server.engine.native.blocks import pack_size
from server.engine.native.memory import to_huge_pages
from server.engine.native.structs import CWeight
from server.engine.native.team import ThreadTeam

LANES = 16
"""Outputs that are computed together."""
_INNER = 32
"""The inner dimension is padded to a multiple of this."""
_ROWS = 32
"""Inputs are padded to a multiple of this many rows."""


class PackedWeight:
    """A weight matrix [n, k] in the layout of gemm.h. It owns the memory that C points to.

    `int8` quantizes to 8-bit integers with one scale per output, its largest weight / 127.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, int8: bool) -> None:
        pack = pack_size(weight.dtype)
        weight = pad(weight.detach(), (0, -weight.shape[1] % _INNER, 0, -weight.shape[0] % LANES))
        n, self.k = weight.shape
        self.scales = None
        if int8:
            self.scales = weight.float().abs().amax(1).clamp(min=1e-12) / 127
            weight = (weight.float() / self.scales[:, None]).round().to(torch.int8)
        blocks = weight.view(n // LANES, LANES, self.k // pack, pack)
        self.data = to_huge_pages(blocks.transpose(1, 2))  # [n / 16, k / pack, 16, pack]
        self.bias = None if bias is None else pad(bias.detach().float(), (0, n - len(bias)))
        self.n = n

    def as_c(self) -> CWeight:
        bias, scales = (None if x is None else x.data_ptr() for x in (self.bias, self.scales))
        return CWeight(self.data.data_ptr(), bias, scales, self.n, self.k)


class NativeLinear(nn.Module):
    """A frozen `nn.Linear` as compiled code, for the model's head."""

    def __init__(self, linear: nn.Linear, team: ThreadTeam, *, int8: bool = False) -> None:
        super().__init__()
        self._weight = PackedWeight(linear.weight, linear.bias, int8=int8)
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
