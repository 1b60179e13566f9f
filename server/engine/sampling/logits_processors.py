"""Logits processors: biases, penalties, `min_tokens`, grammar masks.

Nothing here waits for the device. Steps without such requests pass through unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.attention.base import Step
from server.engine.memory.transfer import to_device
from server.engine.sampling.masks import apply_grammar_bitmask
from server.engine.scheduler.batch import Chunk


def process_logits(
    logits: Tensor, sampled: list[Chunk], step: Step, eos_token_ids: Sequence[int]
) -> Tensor:
    """Apply the requests' processors to `logits` [num_sampled, vocab_size].

    Returns `logits` itself where no request has a processor, else a changed float32 copy. The order
    is vLLM's: biases, the repetition penalty, then OpenAI's two penalties. Grammars come last.
    """
    matchers = {i: m for i, chunk in enumerate(sampled) if (m := chunk.seq.matcher) is not None}
    rows = [i for i, chunk in enumerate(sampled) if _has_processor(chunk)]
    if rows or matchers:
        logits = logits.to(torch.float32, copy=True)
    if rows:
        _process(logits, rows, sampled, step, eos_token_ids)
    if matchers:
        apply_grammar_bitmask(logits, matchers)
    return logits


def _process(
    logits: Tensor,
    rows: list[int],
    sampled: list[Chunk],
    step: Step,
    eos_token_ids: Sequence[int],
) -> None:
    at = to_device(rows, torch.long, logits.device)
    chunks = [sampled[i] for i in rows]
    changed = logits[at]
    # Last input token of each row. Only the device knows the tokens of the step in flight.
    last_ids = step.input_ids[0, step.logit_rows[at]]
    _add_biases(changed, chunks, eos_token_ids)
    if any(chunk.seq.sampling.repetition_penalty != 1.0 for chunk in chunks):
        changed = _with_repetition_penalty(changed, chunks, last_ids)
    if any(_has_count_penalty(chunk) for chunk in chunks):
        changed -= _penalties(changed, chunks, last_ids)
    logits[at] = changed


def _has_processor(chunk: Chunk) -> bool:
    sampling = chunk.seq.sampling
    return bool(
        sampling.logit_bias
        or sampling.repetition_penalty != 1.0
        or _has_count_penalty(chunk)
        or chunk.num_completion_tokens < sampling.min_tokens
    )


def _has_count_penalty(chunk: Chunk) -> bool:
    sampling = chunk.seq.sampling
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _add_biases(logits: Tensor, chunks: list[Chunk], eos_token_ids: Sequence[int]) -> None:
    entries: list[tuple[int, int, float]] = []
    for i, chunk in enumerate(chunks):
        sampling = chunk.seq.sampling
        entries += [(i, token_id, bias) for token_id, bias in sampling.logit_bias]
        if chunk.num_completion_tokens < sampling.min_tokens:
            ends = (*eos_token_ids, *sampling.stop_token_ids)
            entries += [(i, token_id, -torch.inf) for token_id in ends]
    if entries:
        rows, token_ids, biases = zip(*entries, strict=True)
        at = _indices(rows, token_ids, logits.device)
        logits.index_put_(at, to_device(biases, logits.dtype, logits.device), accumulate=True)


def _with_repetition_penalty(logits: Tensor, chunks: list[Chunk], last_ids: Tensor) -> Tensor:
    """`logits` with each row's repetition penalty on the tokens of its prompt and completion."""
    seen = _count(logits, [chunk.seq.token_ids[: chunk.end - 1] for chunk in chunks]) > 0
    seen.scatter_(1, last_ids[:, None], value=True)
    factors = [chunk.seq.sampling.repetition_penalty for chunk in chunks]
    factor = to_device(factors, logits.dtype, logits.device)[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def _penalties(logits: Tensor, chunks: list[Chunk], last_ids: Tensor) -> Tensor:
    """What presence and frequency penalties subtract: [num_rows, vocab_size].

    Both count the tokens of the completion so far.
    """
    completions = [c.seq.token_ids[c.seq.num_prompt_tokens : c.end - 1] for c in chunks]
    counts = _count(logits, completions)
    has_last = [float(chunk.num_completion_tokens > 0) for chunk in chunks]
    last = to_device(has_last, logits.dtype, logits.device)
    counts.scatter_add_(1, last_ids[:, None], last[:, None])
    sampling = [chunk.seq.sampling for chunk in chunks]
    frequency = to_device([s.frequency_penalty for s in sampling], logits.dtype, logits.device)
    presence = to_device([s.presence_penalty for s in sampling], logits.dtype, logits.device)
    return frequency[:, None] * counts + presence[:, None] * (counts > 0)


def _count(logits: Tensor, texts: list[list[int]]) -> Tensor:
    """Number of occurrences of each token in each row's text: [num_rows, vocab_size]."""
    counts = torch.zeros_like(logits)
    rows = [i for i, text in enumerate(texts) for _ in text]
    at = _indices(rows, [token_id for text in texts for token_id in text], logits.device)
    return counts.index_put_(at, counts.new_ones(()), accumulate=True)


def _indices(
    rows: Sequence[int], token_ids: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    return to_device(rows, torch.long, device), to_device(token_ids, torch.long, device)
