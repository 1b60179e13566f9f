"""CUDA graphs of the whole forward, one per number of tokens: a step is one launch.

The composition of a step is data in device memory, so any mix of decode tokens and prompts can be
replayed. A step is rounded up to the next bucket; the padding rows are neither planned nor read.
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
"""Larger buckets are captured by the first step that uses them: few are used, and a capture is
slow."""

Forward = Callable[[Step], Tensor]
"""Returns the logits of a step's `logit_rows`. The step must have been planned."""
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Captures device work; returns a function that repeats it on the same memory."""


class CudaCapture:
    """Captures CUDA graphs. They share one memory pool, because only one runs at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        work()  # kernels must be compiled, and chosen by libraries, before the capture
        graph = torch.cuda.CUDAGraph()
        # Another thread may copy prefixes at the same time: that must not invalidate the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


def buckets_for(max_num_tokens: int) -> list[int]:
    """Return the buckets that steps of up to `max_num_tokens` can need."""
    return [*BUCKETS[: bisect_left(BUCKETS, max_num_tokens) + 1]]


class Graphs:
    """Captured forwards, by bucket. All share one set of inputs and one buffer of logits."""

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
            segments=[],
        )
        self._logits: Tensor | None = None  # [max_num_rows, vocab_size]
        self._replays: dict[int, Callable[[], None] | None] = {}

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Capture the buckets up to CAPTURED_AT_START.

        The largest comes first, because smaller ones fit into the memory that it has reserved.
        """
        for bucket in reversed(self.buckets):
            if bucket <= CAPTURED_AT_START:
                self._replays[bucket] = self._captured(bucket)

    @torch.inference_mode()
    def replay(self, step: Step) -> Tensor | None:
        """Replay a planned step; returns its logits [num_sampled, vocab_size].

        Returns None if there is no graph for it: then the forward has to run. The next replay
        overwrites the logits.
        """
        num_tokens, num_rows = step.input_ids.shape[1], len(step.logit_rows)
        if num_tokens > self.buckets[-1]:
            return None
        bucket = self.buckets[bisect_left(self.buckets, num_tokens)]
        self._inputs.input_ids[:, :num_tokens].copy_(step.input_ids)
        self._inputs.position_ids[:, :num_tokens].copy_(step.position_ids)
        # Rows left from a larger step may be out of range in this bucket.
        self._inputs.logit_rows.zero_()
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
        except Exception as exc:  # most likely out of memory
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
