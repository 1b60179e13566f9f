"""What grammars forbid, for the rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.engine.grammar import Matcher

if TYPE_CHECKING:
    from llguidance import LLExecutor

_WORD_BITS = 32


def mask(logits: Tensor, matchers: Sequence[Matcher]) -> Tensor:
    """`logits` [num_rows, vocab_size], -inf where the row's grammar forbids the token; all NaN
    where it cannot be followed any further."""
    words = _allowed(matchers).to(logits.device, non_blocking=True)
    shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=logits.device)
    forbidden = ((words[:, :, None] >> shifts) & 1).flatten(1) == 0
    masked = logits.masked_fill(forbidden[:, : logits.shape[-1]], -torch.inf)
    for row, matcher in enumerate(matchers):
        if matcher.error is not None:
            masked[row] = torch.nan
    return masked


def _allowed(matchers: Sequence[Matcher]) -> Tensor:
    """A bit for each token, [num_rows, num_words], in host memory from which a device copies."""
    vocab_size = matchers[0].vocab_size
    num_words = -(-vocab_size // _WORD_BITS)
    pin_memory = torch.cuda.is_available()
    words = torch.zeros(len(matchers), num_words, dtype=torch.int32, pin_memory=pin_memory)
    rows = [(matcher.matcher, row) for row, matcher in enumerate(matchers)]
    _executor().unsafe_compute_mask_ptr(rows, words.data_ptr(), 4 * num_words, len(rows))
    return words


@cache
def _executor() -> LLExecutor:
    """Threads that compute masks side by side."""
    from llguidance import LLExecutor

    return LLExecutor()
