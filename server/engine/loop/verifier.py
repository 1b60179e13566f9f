"""Verification of a prefix: a prompt is run without it and then with it, as ordinary sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from prefix_store.digest import Digest
from server.engine.ipc import messages as m
from server.engine.params import COMPILES, SamplingParams, SchedulingParams
from server.engine.scheduler.sequence import Sequence
from server.errors import StepFailed


class Verifier:
    """The pending verifications. The runner stores their logits [vocab_size] in `probes`."""

    def __init__(self, probes: dict[int, Tensor | None]) -> None:
        self._probes = probes
        self._pending: dict[int, m.Verify] = {}
        self._plain: dict[int, Tensor] = {}

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._pending

    def start(self, request: m.Verify) -> Sequence:
        """Return the first sequence to run: the prompt without the prefix."""
        self._pending[request.request_id] = request
        self._probes[request.request_id] = None
        return _sequence(request, None)

    def advance(self, seq: Sequence) -> Sequence | m.Verified | m.Failed:
        """Return what follows a sequence that ran: the second sequence, or the answer."""
        logits = self._probes[seq.request_id]
        assert logits is not None, "the runner keeps the logits of every probe"
        if not torch.isfinite(logits).all():
            self.remove(seq.request_id)
            return m.Failed(seq.request_id, StepFailed.code, "the model's output is not finite")
        if seq.prefix is None:
            self._plain[seq.request_id] = logits
            request = self._pending[seq.request_id]
            return _sequence(request, Digest(request.prefix))
        effect = distance(self._plain[seq.request_id], logits)
        self.remove(seq.request_id)
        return m.Verified(seq.request_id, effect)

    def remove(self, request_id: int) -> None:
        """Forget a verification that was answered."""
        self._pending.pop(request_id, None)
        self._probes.pop(request_id, None)
        self._plain.pop(request_id, None)


def distance(plain: Tensor, other: Tensor) -> float:
    """Return the RMS of `other - plain` relative to the RMS of `plain`, both [vocab_size].

    Each is centred first, because a constant added to all logits changes no probability.
    """
    plain, other = plain - plain.mean(), other - other.mean()
    return float((other - plain).norm() / plain.norm())


def _sequence(request: m.Verify, prefix: Digest | None) -> Sequence:
    scheduling = SchedulingParams(queue=COMPILES)
    sampling = SamplingParams(max_tokens=1)
    return Sequence(
        request.request_id, prefix, list(request.token_ids), sampling, scheduling, verifies=True
    )
