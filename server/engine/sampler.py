"""Logits -> token ids, on the device, with parameters and a seed for each request.

The same seed, request and logits give the same tokens whatever else is in the batch: noise is a
hash of (seed, step, token id), not the state of a generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.request import Sampling

INVALID = -1
"""In place of a token where the logits hold NaN."""
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How one row is sampled, and the how-manieth token of its completion it makes."""

    sampling: Sampling
    step: int

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < _GREEDY_BELOW


def sample(logits: Tensor, rows: list[SampleRow]) -> list[int]:
    """One token id for each row of `logits` [num_rows, vocab_size]; `INVALID` where NaN."""
    highest, token_ids = logits.max(-1)
    random = [i for i, row in enumerate(rows) if not row.is_greedy]
    if random:
        token_ids[random] = _sample_random(logits[random].float(), [rows[i] for i in random])
    result: list[int] = token_ids.masked_fill(highest.isnan(), INVALID).tolist()  # NaN beats all
    return result


def _sample_random(logits: Tensor, rows: list[SampleRow]) -> Tensor:
    temperature = logits.new_tensor([row.sampling.temperature for row in rows])
    logits = logits / temperature[:, None]
    for i, row in enumerate(rows):
        _keep_likely(logits[i], row.sampling)
    return (logits + _gumbel(rows, logits)).argmax(-1)


def _keep_likely(logits: Tensor, sampling: Sampling) -> None:
    """Mask, in place, what top-k and then top-p leave out of one row [vocab_size]."""
    if 0 < sampling.top_k < len(logits):
        threshold = logits.topk(sampling.top_k).values[-1]
        logits.masked_fill_(logits < threshold, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(descending=True, stable=True)
        probs = ordered.softmax(-1)
        before = probs.cumsum(-1) - probs  # the first token is always kept
        logits[order[before >= sampling.top_p]] = -torch.inf


def _gumbel(rows: list[SampleRow], logits: Tensor) -> Tensor:
    """Gumbel noise [num_rows, vocab_size]: adding it to logits makes argmax a fair draw."""
    seeds = torch.tensor([_signed(row.sampling.seed) for row in rows], device=logits.device)
    steps = torch.tensor([row.step for row in rows], device=logits.device)
    keys = _mix(_mix(seeds) + steps)
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    bits = (_mix(keys[:, None] + tokens) >> 40) & 0xFFFFFF
    uniform = (bits.double() + 0.5) * 2.0**-24
    return -torch.log(-torch.log(uniform)).to(logits.dtype)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood, 2014) on int64, which wraps around."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right, which int64 does not have."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The same 64 bits, read as a signed integer."""
    return (x & (2**64 - 1)) - ((x & 2**63) << 1)
