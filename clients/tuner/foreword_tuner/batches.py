"""Batches of examples of similar length, deterministic in seed and epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foreword_tuner.encoding import Example

_BATCHES_SORTED_TOGETHER = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows, and the positions at which a token of a completion is predicted."""

    token_ids: Tensor  # [B, T]
    rows: Tensor  # [N], indices into the B * T positions
    targets: Tensor  # [N]
    owners: Tensor  # [N], indices into the B examples
    numbers: list[int]
    """The examples' line numbers."""
    lengths: list[int]
    """Lengths of the rows, without padding."""

    @property
    def num_examples(self) -> int:
        return len(self.numbers)

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            rows=self.rows.to(device),
            targets=self.targets.to(device),
            owners=self.owners.to(device),
        )


def pack(examples: Sequence[Example], pad_id: int) -> Batch:
    """Make a batch. Padding is on the right, where a causal model does not attend to it."""
    width = max(example.num_tokens for example in examples)
    token_ids = torch.full((len(examples), width), pad_id)
    rows: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for i, example in enumerate(examples):
        ids = [*example.prompt_ids, *example.completion_ids[:-1]]
        token_ids[i, : len(ids)] = torch.tensor(ids)
        first = i * width + len(example.prompt_ids) - 1
        rows += range(first, first + len(example.completion_ids))
        targets += example.completion_ids
        owners += [i] * len(example.completion_ids)
    return Batch(
        token_ids,
        torch.tensor(rows),
        torch.tensor(targets),
        torch.tensor(owners),
        [example.number for example in examples],
        [example.num_tokens for example in examples],
    )


def in_order(examples: Sequence[Example], max_tokens: int) -> Iterator[list[Example]]:
    """Yield batches of all examples, shortest first, for evaluation."""
    return _cut(sorted(examples, key=_length), max_tokens)


def epoch(
    examples: Sequence[Example], max_tokens: int, *, seed: int, number: int
) -> list[list[Example]]:
    """Make shuffled batches of all examples, of at most `max_tokens` tokens with padding."""
    order = random.Random(f"{seed} {number}")
    shuffled = list(examples)
    order.shuffle(shuffled)
    average = sum(map(_length, shuffled)) / len(shuffled)
    num_together = max(1, int(_BATCHES_SORTED_TOGETHER * max_tokens / average))
    batches: list[list[Example]] = []
    for i in range(0, len(shuffled), num_together):
        batches += _cut(sorted(shuffled[i : i + num_together], key=_length), max_tokens)
    order.shuffle(batches)
    return batches


def _length(example: Example) -> int:
    return example.num_tokens


def _cut(examples: Sequence[Example], max_tokens: int) -> Iterator[list[Example]]:
    """Split examples, sorted by length, into batches. A batch has at least one example."""
    batch: list[Example] = []
    for example in examples:
        if batch and (len(batch) + 1) * example.num_tokens > max_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch
