"""Log-probabilities of sampled tokens and of prompt tokens, for requests that ask for them."""

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
"""Number of prompt rows whose logits are in memory at the same time."""


@dataclass(frozen=True, slots=True)
class LogprobsRequest:
    """The request that owns a run of logit rows, and the number of top tokens it wants."""

    request_id: int
    num_rows: int
    num_top: int


class PendingLogprobs:
    """Log-probabilities on their way to the host.

    `blocks`: pairs of logits [n, vocab_size] and the token ids [n] to score.
    """

    def __init__(
        self, requests: list[LogprobsRequest], blocks: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        self._requests = requests
        num_top = max((request.num_top for request in requests), default=0)
        scored = [_score(logits, token_ids, num_top) for logits, token_ids in blocks]
        self._columns = [ToHost(torch.cat(parts)) for parts in zip(*scored, strict=True)]

    def wait(self) -> dict[int, Logprobs]:
        """Wait for the copy to the host. Log-probabilities by request id."""
        if not self._requests:
            return {}
        logprobs, *top = (column.wait() for column in self._columns)
        scores, begin = {}, 0
        for request in self._requests:
            rows = slice(begin, begin + request.num_rows)
            begin += request.num_rows
            top_ids, top_logprobs = (x[rows, : request.num_top].tolist() for x in top)
            scores[request.request_id] = Logprobs(logprobs[rows].tolist(), top_ids, top_logprobs)
        return scores


def of_sampled(batch: Batch, logits: Tensor, token_ids: Tensor) -> PendingLogprobs:
    """Score sampled tokens [num_sampled] by the model's logits [num_sampled, vocab_size]."""
    rows, requests = [], []
    for row, chunk in enumerate(batch.sampled):
        if (num_top := chunk.seq.sampling.logprobs) is not None:
            rows.append(row)
            requests.append(LogprobsRequest(chunk.seq.request_id, 1, num_top))
    if not rows:
        return PendingLogprobs([], [])
    at = to_device(rows, torch.long, logits.device)
    return PendingLogprobs(requests, [(logits[at], token_ids[at])])


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of a step that predict prompt tokens whose log-probabilities are requested."""

    requests: list[LogprobsRequest]
    rows: list[int]
    token_ids: list[int]

    @classmethod
    def of(cls, batch: Batch, step: Step) -> PromptRows:
        """Collect the rows of a batch, with the prompt token that each predicts."""
        requests: list[LogprobsRequest] = []
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
            requests.append(LogprobsRequest(seq.request_id, last - first, num_top))
            row_of_0 = begin[seq.request_id] - chunk.start
            rows += range(row_of_0 + first, row_of_0 + last)
            token_ids += seq.token_ids[first + 1 : last + 1]
        return cls(requests, rows, token_ids)


def _score(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of `token_ids` [n], then ids and log-probabilities of the top tokens
    [n, num_top]."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    top = logits.topk(min(num_top, logits.shape[-1]))
    own = logits.gather(-1, token_ids[:, None]) - total
    return own[:, 0], top.indices, top.values - total
