"""The whole forward, captured once for each number of tokens and replayed: a step is one launch.

What a step is made of lies in device memory, so any mix of decode tokens and prompts replays. A
step is rounded up to the next bucket; the rows beyond it are planned by nobody and read by nobody.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from server.engine.attention.base import Step

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, *range(16, 128, 8), *range(128, 513, 32), 768, 1024, 1536, 2048)
CAPTURED_AT_START = 512
"""Larger ones are captured when the first step wants them: few are, and each takes a while."""

Forward = Callable[[Step], Tensor]
"""Logits of a step's `logit_rows`, planned already."""
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Device work -> a call that does it again, on what then lies in the same memory."""


class CudaCapture:
    """Captures share one memory pool: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        work()  # kernels are compiled and libraries choose theirs outside of a capture
        graph = torch.cuda.CUDAGraph()
        # Prefixes are copied by another thread meanwhile, which is nothing to the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


def buckets_for(max_num_tokens: int) -> list[int]:
    """Those that a step of up to `max_num_tokens` may need."""
    return [*BUCKETS[: bisect_left(BUCKETS, max_num_tokens) + 1]]


class Graphs:
    """Forwards by bucket. All share the same inputs and the same place for their logits."""

    def __init__(
        self,
        forward: Forward,
        capture: Capture,
        *,
        max_num_tokens: int,
        max_num_rows: int,
        device: torch.device,
    ) -> None:
        self._forward = forward
        self._capture = capture
        self.buckets = buckets_for(max_num_tokens)
        self._inputs = Step(
            input_ids=torch.zeros(1, self.buckets[-1], dtype=torch.long, device=device),
            position_ids=torch.zeros(1, self.buckets[-1], dtype=torch.long, device=device),
            logit_rows=torch.zeros(max_num_rows, dtype=torch.long, device=device),
            spans=[],
            groups=[],
        )
        self._logits: Tensor | None = None  # [max_num_rows, vocab_size]
        self._replays: dict[int, Callable[[], None] | None] = {}

    @torch.inference_mode()
    def capture_all(self) -> None:
        """The largest first: the others find room in the memory that it needed."""
        for bucket in reversed(self.buckets):
            if bucket <= CAPTURED_AT_START:
                self._replays[bucket] = self._captured(bucket)

    @torch.inference_mode()
    def replay(self, step: Step) -> Tensor | None:
        """Logits of a step that attention has planned; None where it is to be run instead.

        They are overwritten by the next one.
        """
        num_tokens, num_rows = step.input_ids.shape[1], len(step.logit_rows)
        if num_tokens > self.buckets[-1]:
            return None
        bucket = self.buckets[bisect_left(self.buckets, num_tokens)]
        self._inputs.input_ids[:, :num_tokens].copy_(step.input_ids)
        self._inputs.position_ids[:, :num_tokens].copy_(step.position_ids)
        self._inputs.logit_rows.zero_()  # what a larger step left there may lie beyond this bucket
        self._inputs.logit_rows[:num_rows].copy_(step.logit_rows)
        if bucket not in self._replays:
            self._replays[bucket] = self._try_capture(bucket)
        replay = self._replays[bucket]
        if replay is None:
            return None
        replay()
        assert self._logits is not None
        return self._logits[:num_rows]

    def _try_capture(self, bucket: int) -> Callable[[], None] | None:
        try:
            return self._captured(bucket)
        except Exception as exc:  # most likely there is no memory for it
            logger.warning("no graph for steps of %d tokens: %s", bucket, exc)
            return None

    def _captured(self, bucket: int) -> Callable[[], None]:
        inputs, num_rows = self._bucket(bucket), min(bucket, len(self._inputs.logit_rows))
        if self._logits is None:
            example = self._forward(inputs)
            self._logits = example.new_zeros(len(self._inputs.logit_rows), example.shape[-1])
        target = self._logits[:num_rows]
        return self._capture(lambda: _copy(self._forward(inputs), target))

    def _bucket(self, bucket: int) -> Step:
        return replace(
            self._inputs,
            input_ids=self._inputs.input_ids[:, :bucket],
            position_ids=self._inputs.position_ids[:, :bucket],
            logit_rows=self._inputs.logit_rows[:bucket],
        )


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)
