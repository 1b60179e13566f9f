"""Between host and device without keeping the steps waiting.

Only pinned memory is copied beside the work of a device. On a CPU all of this is plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE_BYTES = 8 << 20
"""Small enough that what a step sends is not held up behind a piece, and fast all the same."""


def to_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new tensor [len(values)]; what is launched after this finds it there."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class ToHost:
    """A tensor on its way from the device."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._tensor = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> Tensor:
        """Until it is there, and with it everything that was launched before."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


class SideCopy:
    """Copies large tensors to a CUDA device on a stream of its own, while steps run.

    In pieces through two buffers, so that nothing large is ever pinned: that takes long, and holds
    up whatever else talks to the device. Waits for the copy: not for the step loop's thread.
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
                sent.synchronize()  # what this buffer held before is gone
                piece = source[begin : begin + size]
                buffer[: len(piece)].copy_(piece)
                target[begin : begin + size].copy_(buffer[: len(piece)], non_blocking=True)
                sent.record(self._stream)
            self._stream.synchronize()
        return copy


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
