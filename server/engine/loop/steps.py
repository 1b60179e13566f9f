"""Launches steps and commits their results, one at a time or with one step ahead.

With `overlap`, a step is launched before the tokens of the previous one are known, so that the
device never waits for the host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch

from server.engine.params import Delta, Logprobs, SamplingParams
from server.engine.sampling.sampler import INVALID
from server.engine.scheduler.batch import Batch, Chunk
from server.engine.scheduler.scheduler import Scheduler
from server.engine.scheduler.sequence import Sequence, SequenceStatus

logger = logging.getLogger(__name__)

_MAX_OUT_OF_MEMORY = 3
"""Consecutive probes that may run out of memory before the device counts as lost."""
_PROBE_ID = 0
"""Request id of the probe in `Steps.check`. Requests have ids from 1."""


class DeviceLost(Exception):
    """The device cannot run a single token any more, and the process has to be replaced."""


class StepHandle(Protocol):
    """A launched step."""

    def sample(self) -> None:
        """Sample the step's tokens, once those of the previous step are known. Idempotent.

        A step without rows whose grammar depends on these samples by itself when it is launched.
        """
        ...

    def tokens(self) -> list[int]:
        """Wait for the step; return one token for each of the batch's `sampled`."""
        ...

    def logprobs(self) -> Mapping[int, Logprobs]:
        """Log-probabilities of these tokens, for requests that ask, by request id."""
        ...

    def prompt_logprobs(self) -> Mapping[int, Logprobs]:
        """Log-probabilities of prompt tokens, for requests that ask, by request id."""
        ...


class StepRunner(Protocol):
    """The part of the runner that `Steps` uses."""

    def launch(self, batch: Batch) -> StepHandle: ...


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    batch: Batch
    handle: StepHandle


class Steps:
    """Schedules steps, launches them and commits their tokens. `overlap` keeps one step in flight.

    `on_commit` is called with every committed batch and its deltas. `on_failure` is called with
    every sequence that cannot continue and the reason; it must finish the sequence unless that has
    been done.

    Recovery: nothing of a failed step is committed, so all of its sequences can run again. After an
    out-of-memory error they do so in smaller steps, for as long as the budget can be halved. After
    any other error each sequence runs alone, so that only the one that causes the error fails. If
    none of them runs, `check` decides between bad requests and a lost device. A step that was
    scheduled after the failed one is abandoned as well, because its inputs include tokens that were
    never sampled.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        *,
        on_commit: Callable[[Batch, list[Delta]], None],
        on_failure: Callable[[Sequence, str], None],
        overlap: bool,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._overlap = overlap
        self._in_flight: _InFlightStep | None = None
        self._num_out_of_memory = 0

    @property
    def has_work(self) -> bool:
        return self._in_flight is not None or self._scheduler.has_work

    def step(self) -> None:
        """Launch a step, if anything can run, and commit the previous one.

        Without `overlap`, the launched step itself is committed. Raises `DeviceLost`.
        """
        batch = self._scheduler.schedule() if self._scheduler.has_work else Batch([])
        previous, self._in_flight = self._in_flight, None
        try:
            launched = _InFlightStep(batch, self._runner.launch(batch)) if batch.chunks else None
        except Exception as exc:
            if previous is None or self._finish(previous, then=batch):
                self._recover(batch, exc)
            return
        if not self._overlap:
            previous, launched = launched, None
        self._in_flight = launched
        if (previous is None or self._finish(previous, then=batch)) and launched is not None:
            self._sample(launched)

    def check(self) -> None:
        """Run one token of a probe that belongs to no request. Raises `DeviceLost` if that fails.

        No step may be in flight. After some errors (CUDA's, for one) every later call fails too, so
        that no request can be held responsible. Skipped if there is no free page.
        """
        seq = Sequence(_PROBE_ID, None, [0], SamplingParams(max_tokens=1))
        if not self._scheduler.allocator.grow(seq.pages, 1):
            return
        try:
            self._runner.launch(Batch([Chunk.of(seq, 0, 1)])).tokens()
            self._num_out_of_memory = 0
        except Exception as exc:
            self._num_out_of_memory += 1
            if not _is_out_of_memory(exc) or self._num_out_of_memory == _MAX_OUT_OF_MEMORY:
                raise DeviceLost(f"{type(exc).__name__}: {exc}") from exc
        finally:
            self._scheduler.allocator.free(seq.pages)

    def _sample(self, step: _InFlightStep) -> None:
        """Sample the step's tokens, now that the previous step's tokens are known.

        The forward pass is already running meanwhile.
        """
        try:
            step.handle.sample()
        except Exception as exc:
            self._in_flight = None
            self._recover(step.batch, exc)

    def _finish(self, step: _InFlightStep, then: Batch) -> bool:
        """Wait for a step and commit it; return False if it failed.

        `then` is the batch scheduled after it. After a failure it is abandoned.
        """
        try:
            token_ids = step.handle.tokens()
        except Exception as exc:
            if then is not step.batch and then.chunks:
                self._discard(then)
            self._recover(step.batch, exc)
            return False
        self._commit(step.batch, step.handle, token_ids)
        return True

    def _discard(self, batch: Batch) -> None:
        step, self._in_flight = self._in_flight, None
        if step is not None:
            with suppress(Exception):
                step.handle.tokens()  # wait until the device has finished with its pages
        self._scheduler.abandon(batch)

    def _commit(self, batch: Batch, handle: StepHandle, token_ids: list[int]) -> None:
        for chunk, token_id in zip(batch.sampled, token_ids, strict=True):
            if token_id == INVALID and chunk.seq.status is not SequenceStatus.FINISHED:
                self._on_failure(chunk.seq, _invalid_token_error(chunk.seq))
        logprobs, prompt_logprobs = handle.logprobs(), handle.prompt_logprobs()
        self._num_out_of_memory = 0
        deltas = self._scheduler.commit(batch, token_ids, logprobs, prompt_logprobs)
        self._on_commit(batch, deltas)

    def _recover(self, batch: Batch, exc: Exception) -> None:
        """Run the sequences of a failed step again, in smaller steps or alone.

        A sequence that fails alone is finished before `on_failure`, so that `check` has its pages.
        Raises `DeviceLost`.
        """
        batch = self._scheduler.abandon(batch)
        smaller = self._scheduler.max_num_batched_tokens // 2
        if _is_out_of_memory(exc) and smaller >= self._scheduler.max_num_seqs:
            logger.warning("out of memory: limiting steps to %d tokens", smaller)
            self._scheduler.max_num_batched_tokens = smaller
            return
        logger.exception("a step of %d sequences failed", len(batch.chunks), exc_info=exc)
        failed = [chunk.seq for chunk in batch.chunks if not self._runs_alone(chunk)]
        for seq in failed:
            self._scheduler.finish(seq)
        if len(failed) == len(batch.chunks) > 0:
            self.check()
        for seq in failed:
            self._on_failure(seq, "the model could not run this request")

    def _runs_alone(self, chunk: Chunk) -> bool:
        alone = Batch([chunk])
        try:
            handle = self._runner.launch(alone)
            token_ids = handle.tokens()
        except Exception:
            logger.exception("request %d failed when run alone", chunk.seq.request_id)
            return False
        self._commit(alone, handle, token_ids)
        return True


def _invalid_token_error(seq: Sequence) -> str:
    matcher_error = seq.matcher.error if seq.matcher is not None else None
    return matcher_error or "the model's output is not a number"


def _is_out_of_memory(exc: Exception) -> bool:
    return isinstance(exc, MemoryError | torch.OutOfMemoryError) or (
        isinstance(exc, RuntimeError) and "can't allocate memory" in str(exc)
    )
