"""Lower layers that are not trained: their output for an example is constant.

It is computed once and cached. Every later step runs only the layers above, forward and backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from foreword_tuner.batches import Batch
from foreword_tuner.errors import TunerError

_MAX_KEPT_BYTES = 4 << 30


class _Reached(Exception):
    """The forward pass has reached the first trained layer."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Cut:
    """A decoder cut before `first_layer`."""

    def __init__(self, decoder: Any, first_layer: int) -> None:
        layers: Any = getattr(decoder, "layers", None) or getattr(decoder, "h", ())
        if not 0 < first_layer < len(layers):
            raise TunerError(f"--first-layer: this model has {len(layers)} layers")
        self._decoder = decoder
        self._lower: list[Any] = list(layers[:first_layer])
        self._first: nn.Module = layers[first_layer]
        self._kept: dict[int, Tensor] = {}  # [num_tokens, hidden_size] of an example
        self._num_bytes = 0

    def __call__(self, batch: Batch, **inputs: Any) -> Any:
        """Return the decoder's output. Caches the lower layers' output per example."""
        if any(number not in self._kept for number in batch.numbers):
            hidden = self._compute(inputs)
            self._keep(batch, hidden)
        else:
            rows = [self._kept[number] for number in batch.numbers]
            hidden = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        with self._from(hidden):
            return self._decoder(**inputs)

    @torch.no_grad()
    def _compute(self, inputs: dict[str, Any]) -> Tensor:
        def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        hook = self._first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._decoder(**inputs)
        except _Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
        raise AssertionError("a decoder's layers all run")

    def _keep(self, batch: Batch, hidden: Tensor) -> None:
        for number, length, row in zip(batch.numbers, batch.lengths, hidden, strict=True):
            if self._num_bytes < _MAX_KEPT_BYTES:
                self._kept[number] = row[:length].clone()
                self._num_bytes += self._kept[number].nbytes

    @contextlib.contextmanager
    def _from(self, hidden: Tensor) -> Iterator[None]:
        """Skip the lower layers, and pass `hidden` to the first trained one."""

        def replace(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            if args:
                return (hidden, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": hidden}

        hook = self._first.register_forward_pre_hook(replace, with_kwargs=True)
        for layer in self._lower:
            layer.forward = _unchanged
        try:
            yield
        finally:
            hook.remove()
            for layer in self._lower:
                del layer.forward


def _unchanged(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states
