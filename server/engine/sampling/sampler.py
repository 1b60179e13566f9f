"""Logits -> token ids, on the device, with parameters and a seed for each request.

The same seed, request and logits give the same tokens whatever else is in the batch: noise is a
hash of (seed, step, token id), not the state of a generator. Nothing here waits for the device:
which rows need which work is known from their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.memory.transfer import to_device
from server.engine.params import SamplingParams

INVALID = -1
"""In place of a token where the logits hold NaN."""
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How one row is sampled, and the how-manieth token of its completion it makes."""

    sampling: SamplingParams
    step: int

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < _GREEDY_BELOW


Argmax = Callable[[Tensor], Tensor]
"""The column of each row's highest value, the first of equals; `INVALID` where there is NaN."""


def argmax(logits: Tensor) -> Tensor:
    """`Argmax`, by torch or numpy."""
    if logits.device.type == "cpu":  # a fifth of the time that torch takes for bfloat16 on a CPU
        columns = torch.from_numpy(logits.float().numpy().argmax(-1))
    else:
        columns = logits.argmax(-1)
    values = logits.gather(-1, columns[:, None])[:, 0]
    return columns.masked_fill(values.isnan(), INVALID)  # NaN beats all


def sample(logits: Tensor, rows: list[SampleRow], argmax: Argmax = argmax) -> Tensor:
    """One token id for each row of `logits` [num_rows, vocab_size], on their device; `INVALID`
    where NaN."""
    token_ids = argmax(logits)
    random = [i for i, row in enumerate(rows) if not row.is_greedy]
    if random:
        at = to_device(random, torch.long, logits.device)
        drawn = _sample_random(logits[at].float(), [rows[i] for i in random])
        token_ids[at] = torch.where(token_ids[at] == INVALID, INVALID, drawn)
    return token_ids


def _sample_random(logits: Tensor, rows: list[SampleRow]) -> Tensor:
    device, vocab_size = logits.device, logits.shape[-1]
    temperatures = [row.sampling.temperature for row in rows]
    logits = logits / to_device(temperatures, torch.float32, device)[:, None]
    # In the order of vLLM: min_p, top_k, top_p.
    min_p = {i: p for i, row in enumerate(rows) if (p := row.sampling.min_p) > 0.0}
    if min_p:
        at = to_device([*min_p], torch.long, device)
        logits[at] = _keep_min_p(logits[at], [*min_p.values()])
    top_k = {i: k for i, row in enumerate(rows) if 0 < (k := row.sampling.top_k) < vocab_size}
    if top_k:
        at = to_device([*top_k], torch.long, device)
        logits[at] = _keep_top_k(logits[at], [*top_k.values()])
    top_p = {i: p for i, row in enumerate(rows) if (p := row.sampling.top_p) < 1.0}
    if top_p:
        at = to_device([*top_p], torch.long, device)
        logits[at] = _keep_top_p(logits[at], [*top_p.values()])
    return (logits + _gumbel(rows, logits)).argmax(-1)


def _keep_min_p(logits: Tensor, min_p: list[float]) -> Tensor:
    """Mask the tokens of each row [num_rows, vocab_size] whose probability is below `min_p` times
    the highest: a distance of logits, for which no softmax is needed."""
    distances = to_device([math.log(p) for p in min_p], torch.float32, logits.device)
    threshold = logits.amax(-1, keepdim=True) + distances[:, None]
    return logits.masked_fill(logits < threshold, -torch.inf)


def _keep_top_k(logits: Tensor, top_k: list[int]) -> Tensor:
    """Mask all but the k highest of each row [num_rows, vocab_size], and their equals."""
    last = to_device([k - 1 for k in top_k], torch.long, logits.device)[:, None]
    threshold = logits.topk(max(top_k)).values.gather(1, last)
    return logits.masked_fill(logits < threshold, -torch.inf)


def _keep_top_p(logits: Tensor, top_p: list[float]) -> Tensor:
    """Mask all but the likeliest of each row that together reach p, the first one at least."""
    ordered, order = logits.sort(descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    dropped = before >= to_device(top_p, torch.float32, logits.device)[:, None]
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def _gumbel(rows: list[SampleRow], logits: Tensor) -> Tensor:
    """Gumbel noise [num_rows, vocab_size]: adding it to logits makes argmax a fair draw."""
    seeds = to_device([_signed(row.sampling.seed) for row in rows], torch.long, logits.device)
    steps = to_device([row.step for row in rows], torch.long, logits.device)
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
