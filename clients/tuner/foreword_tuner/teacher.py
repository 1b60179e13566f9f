"""The frozen model with a long text: its answers, and its distribution of every token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from foreword_tuner import batches, initial
from foreword_tuner.base import Base
from foreword_tuner.batches import Batch
from foreword_tuner.encoding import Example
from foreword_tuner.errors import TunerError

NUM_KEPT = 64
"""Number of most likely tokens kept per distribution; all others are merged into one. All of
SmolLM2's 49,152 would take 200 kB per token."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The distributions of the tokens of one answer."""

    token_ids: Tensor  # [N, NUM_KEPT]
    log_probs: Tensor  # [N, NUM_KEPT]


class Teacher:
    """The base model with `text_ids`, whose keys and values are computed once.

    `logits_with` computes the logits of a batch with a given prefix.
    """

    def __init__(
        self, base: Base, text_ids: Sequence[int], logits_with: Callable[[Batch, Tensor], Tensor]
    ) -> None:
        if base.attention is None:
            raise TunerError("only decoders can be distilled")
        self._base = base
        self._attention = base.attention
        self._logits_with = logits_with
        self._text = initial.keys_and_values(base.model, text_ids)

    @torch.no_grad()
    def answers(
        self, prompts: Sequence[list[int]], *, max_tokens: int, batch_tokens: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (index of the prompt, greedy answer). Prompts of equal length share a batch."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for width, same in groupby(order, key=lambda i: len(prompts[i])):
            numbers = list(same)
            size = max(1, batch_tokens // (width + max_tokens))
            for i in range(0, len(numbers), size):
                group = numbers[i : i + size]
                rows = self._decode([prompts[n] for n in group], max_tokens)
                yield from zip(group, rows, strict=True)

    @torch.no_grad()
    def targets(self, examples: Sequence[Example], batch_tokens: int) -> dict[int, Targets]:
        """Compute the targets of the examples' completions, by the example's number."""
        found: dict[int, Targets] = {}
        for group in batches.in_order(examples, batch_tokens):
            batch = batches.pack(group, self._base.pad_id).to(self._base.model.device)
            log_probs = self._logits_with(batch, self._text).float().log_softmax(dim=-1)
            best = log_probs.topk(min(NUM_KEPT, log_probs.shape[1]))
            counts = [len(example.completion_ids) for example in group]
            ids: Any = best.indices
            logs: Any = best.values
            pieces = zip(group, ids.split(counts), logs.split(counts), strict=True)
            for example, own_ids, own_logs in pieces:
                found[example.number] = Targets(own_ids.clone(), own_logs.clone())
        return found

    def _decode(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Decode prompts of equal length greedily, each up to its end-of-sequence token."""
        model: Any = self._base.model
        self._attention.prefix = None
        cache = self._cache(len(prompts))
        ids = torch.tensor(prompts, device=model.device)
        start = self._text.shape[3]
        rows: list[list[int]] = [[] for _ in prompts]
        for _ in range(max_tokens):
            positions = torch.arange(start, start + ids.shape[1], device=model.device)[None]
            logits = model(
                input_ids=ids, position_ids=positions, past_key_values=cache, logits_to_keep=1
            ).logits
            start += ids.shape[1]
            ids = logits[:, -1:].argmax(dim=-1)
            for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
                if not row or row[-1] != self._base.eos_id:
                    row.append(token)
            if all(row[-1] == self._base.eos_id for row in rows):
                break
        return rows

    def _cache(self, num_rows: int) -> DynamicCache:
        cache = DynamicCache(config=self._base.model.config)
        for i, (keys, values) in enumerate(self._text):
            shape = (num_rows, *keys.shape)
            cache.update(keys.expand(shape).clone(), values.expand(shape).clone(), i)
        return cache
