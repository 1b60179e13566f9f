"""Transfers between host and device that do not block steps.

Only copies of pinned memory overlap with the work of a device. On a CPU the tensors are plain ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE_BYTES = 8 << 20
"""Small enough that the transfers of a step wait little for a piece, yet near full bandwidth."""


def to_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new tensor [len(values)]. Work launched after this call sees its values."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class ToHost:
    """A tensor being copied from the device to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> Tensor:
        """Wait for the copy, and for all work launched before it; return the tensor on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


class SideCopy:
    """Copies large tensors to a CUDA device on its own stream, while steps run.

    The copy goes in pieces through two pinned buffers. Pinning a large tensor takes long and blocks
    all other calls to the device. A call waits until its copy is complete, so it must not be made
    from the step loop's thread.
    """

    def __init__(self, device: str, piece_bytes: int = PIECE_BYTES) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [
            torch.empty(piece_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]
        self._sent = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def __call__(self, tensor: Tensor) -> Tensor:
        size = len(self._buffers[0])
        with torch.cuda.stream(self._stream):
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
            source, target = _bytes_of(tensor.contiguous()), _bytes_of(copy)
            for begin in range(0, len(source), size):
                buffer, sent = self._buffers[begin // size % 2], self._sent[begin // size % 2]
                sent.synchronize()  # the previous piece in this buffer has been copied
                piece = source[begin : begin + size]
                buffer[: len(piece)].copy_(piece)
                target[begin : begin + size].copy_(buffer[: len(piece)], non_blocking=True)
                sent.record(self._stream)
            self._stream.synchronize()
        return copy


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
