"""Grammar masks for the rows of a step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from server.engine.grammar import Matcher

if TYPE_CHECKING:
    from llguidance import LLExecutor

_WORD_BITS = 32


def apply_grammar_bitmask(logits: Tensor, matchers: Mapping[int, Matcher]) -> None:
    """Mask `logits` [num_rows, vocab_size] in place, in the rows that have a matcher.

    A token that the row's grammar forbids gets -inf. A row whose matcher has failed is set to NaN,
    which fails its request.
    """
    words = _allowed(len(logits), matchers)
    unpack = unpack_forbidden_by_numpy if logits.device.type == "cpu" else unpack_forbidden
    forbidden = unpack(words.to(logits.device, non_blocking=True), logits.shape[-1])
    logits.masked_fill_(forbidden, -torch.inf)
    for row, matcher in matchers.items():
        if matcher.error is not None:
            logits[row] = torch.nan


def _allowed(num_rows: int, matchers: Mapping[int, Matcher]) -> Tensor:
    """Return the allowed tokens as bits, int32 [num_rows, num_words], in pinned memory with CUDA.

    Rows without a matcher have all bits set.
    """
    num_words = -(-max(m.vocab_size for m in matchers.values()) // _WORD_BITS)
    pin_memory = torch.cuda.is_available()
    words = torch.full((num_rows, num_words), -1, dtype=torch.int32, pin_memory=pin_memory)
    rows = [(matcher.matcher, row) for row, matcher in matchers.items()]
    _executor().unsafe_compute_mask_ptr(rows, words.data_ptr(), 4 * num_words, num_rows)
    return words


def unpack_forbidden(words: Tensor, vocab_size: int) -> Tensor:
    """Convert words of bits to a mask [num_rows, vocab_size] that is True for unset bits."""
    shifts = torch.arange(_WORD_BITS, dtype=torch.int32, device=words.device)
    bits = (words[:, :, None] >> shifts) & 1
    return bits.flatten(1)[:, :vocab_size] == 0


def unpack_forbidden_by_numpy(words: Tensor, vocab_size: int) -> Tensor:
    """Equal to `unpack_forbidden`, for tensors on a CPU, in a sixth of the time."""
    raw = words.bitwise_not().numpy().view(np.uint8)
    bits = np.unpackbits(raw, axis=1, count=vocab_size, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_))


@cache
def _executor() -> LLExecutor:
    """Return the thread pool that computes masks in parallel."""
    from llguidance import LLExecutor

    return LLExecutor()
