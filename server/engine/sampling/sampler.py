"""Logits to token ids, on the device, with parameters and a seed for each request.

Equal seed, request and logits give equal tokens whatever else is in the batch: the noise is a hash
of (seed, step, token id), not the state of a generator. Nothing here waits for the device: the
parameters on the host say which rows need which work.
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
"""Returned in place of a token where the logits hold NaN."""
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True, slots=True)
class SampleRow:
    """How one row of logits is sampled."""

    sampling: SamplingParams
    step: int
    """Index of the completion token being sampled."""

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature < _GREEDY_BELOW


Argmax = Callable[[Tensor], Tensor]
"""Column of each row's highest value, the first among equals; `INVALID` where there is NaN."""


def argmax(logits: Tensor) -> Tensor:
    """Default `Argmax`, by numpy on a CPU and torch elsewhere."""
    if logits.device.type == "cpu":  # numpy takes a fifth of torch's time for bfloat16
        columns = torch.from_numpy(logits.float().numpy().argmax(-1))
    else:
        columns = logits.argmax(-1)
    values = logits.gather(-1, columns[:, None])[:, 0]
    return columns.masked_fill(values.isnan(), INVALID)  # argmax picks NaN over any number


def sample(logits: Tensor, rows: list[SampleRow], argmax: Argmax = argmax) -> Tensor:
    """Sample one token id for each row of `logits` [num_rows, vocab_size].

    Returns ids [num_rows] on the device of the logits; `INVALID` for rows with NaN.
    """
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
    """Mask all but the k highest logits of each row [num_rows, vocab_size]. Ties with the k-th
    are kept."""
    last = to_device([k - 1 for k in top_k], torch.long, logits.device)[:, None]
    threshold = logits.topk(max(top_k)).values.gather(1, last)
    return logits.masked_fill(logits < threshold, -torch.inf)


def _keep_top_p(logits: Tensor, top_p: list[float]) -> Tensor:
    """Mask all but the most likely tokens of each row [num_rows, vocab_size] that together reach p.
    At least one is kept."""
    ordered, order = logits.sort(descending=True, stable=True)
    probs = ordered.softmax(-1)
    before = probs.cumsum(-1) - probs
    dropped = before >= to_device(top_p, torch.float32, logits.device)[:, None]
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def _gumbel(rows: list[SampleRow], logits: Tensor) -> Tensor:
    """Gumbel noise [num_rows, vocab_size]: the argmax of logits plus noise is a draw from their
    softmax."""
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
    """Logical right shift, which torch lacks for int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The low 64 bits of `x`, read as a signed integer."""
    return (x & (2**64 - 1)) - ((x & 2**63) << 1)
