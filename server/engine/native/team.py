"""The compute threads of the compiled layers, and argmax on them."""

from __future__ import annotations

from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from server.engine.native.build import library


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
