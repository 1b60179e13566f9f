"""Log-probabilities, for those who ask: of sampled tokens, and of the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.attention.base import Step
from server.engine.memory.transfer import ToHost, to_device
from server.engine.params import Logprobs
from server.engine.scheduler.batch import Batch

BLOCK_ROWS = 64
"""Rows of a prompt whose logits exist at the same time."""


@dataclass(frozen=True, slots=True)
class LogprobsRequest:
    """Whose some rows are, and how many of the likeliest tokens it wants to see."""

    request_id: int
    num_rows: int
    num_top: int


class PendingLogprobs:
    """On their way to the host. `blocks`: logits [n, vocab_size] and the tokens [n] to score."""

    def __init__(
        self, askers: list[LogprobsRequest], blocks: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        self._askers = askers
        num_top = max((asker.num_top for asker in askers), default=0)
        scored = [_score(logits, token_ids, num_top) for logits, token_ids in blocks]
        self._columns = [ToHost(torch.cat(parts)) for parts in zip(*scored, strict=True)]

    def wait(self) -> dict[int, Logprobs]:
        """By request."""
        if not self._askers:
            return {}
        logprobs, *likeliest = (column.wait() for column in self._columns)
        scores, begin = {}, 0
        for asker in self._askers:
            rows = slice(begin, begin + asker.num_rows)
            begin += asker.num_rows
            top_ids, top_logprobs = (x[rows, : asker.num_top].tolist() for x in likeliest)
            scores[asker.request_id] = Logprobs(logprobs[rows].tolist(), top_ids, top_logprobs)
        return scores


def of_sampled(batch: Batch, logits: Tensor, token_ids: Tensor) -> PendingLogprobs:
    """Of what was sampled [num_sampled] from the model's own logits [num_sampled, vocab_size]."""
    rows, askers = [], []
    for row, chunk in enumerate(batch.sampled):
        if (num_top := chunk.seq.sampling.logprobs) is not None:
            rows.append(row)
            askers.append(LogprobsRequest(chunk.seq.request_id, 1, num_top))
    if not rows:
        return PendingLogprobs([], [])
    at = to_device(rows, torch.long, logits.device)
    return PendingLogprobs(askers, [(logits[at], token_ids[at])])


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of a step after which a token of a prompt comes, whose log-probability is asked for."""

    askers: list[LogprobsRequest]
    rows: list[int]
    token_ids: list[int]

    @classmethod
    def of(cls, batch: Batch, step: Step) -> PromptRows:
        askers: list[LogprobsRequest] = []
        rows: list[int] = []
        token_ids: list[int] = []
        asking = [c for c in batch.chunks if c.seq.sampling.prompt_logprobs is not None]
        begin = {span.request_id: span.begin for span in step.spans} if asking else {}
        for chunk in asking:
            seq, num_top = chunk.seq, chunk.seq.sampling.prompt_logprobs or 0
            first = max(chunk.start, seq.num_scored)
            last = min(chunk.end, seq.num_prompt_tokens - 1)
            if first >= last:
                continue
            askers.append(LogprobsRequest(seq.request_id, last - first, num_top))
            row_of_0 = begin[seq.request_id] - chunk.start
            rows += range(row_of_0 + first, row_of_0 + last)
            token_ids += seq.token_ids[first + 1 : last + 1]
        return cls(askers, rows, token_ids)


def _score(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [n] of tokens; ids and log-probabilities [n, num_top] of the likeliest."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    top = logits.topk(min(num_top, logits.shape[-1]))
    own = logits.gather(-1, token_ids[:, None]) - total
    return own[:, 0], top.indices, top.values - total
