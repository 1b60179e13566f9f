"""Steps, launched and taken in: one after the other, or each launched before the last one's tokens
are known, so that the device never waits for the host."""

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
"""Failed steps in a row, before a device without memory for a single token counts as lost."""
_PROBE_ID = 0
"""Requests have ids from 1 on."""


class DeviceLost(Exception):
    """Not even a step that ran before: the device is lost, and this process with it."""


class StepHandle(Protocol):
    """A step on its way."""

    def sample(self) -> None:
        """Choose the tokens, now that all tokens before them are known. Idempotent; a step samples
        by itself where nothing has to be known for that."""
        ...

    def tokens(self) -> list[int]:
        """One token for each of the batch's `sampled`. Waits for them."""
        ...

    def logprobs(self) -> Mapping[int, Logprobs]:
        """Of these tokens, by request, where it asks."""
        ...

    def prompt_logprobs(self) -> Mapping[int, Logprobs]:
        """Of tokens of the prompt, likewise."""
        ...


class StepRunner(Protocol):
    """The runner, as seen from here."""

    def launch(self, batch: Batch) -> StepHandle: ...


@dataclass(frozen=True, slots=True)
class _InFlightStep:
    batch: Batch
    handle: StepHandle


class Steps:
    """Schedules, launches and commits. `overlap` keeps one step in flight.

    `on_commit` gets every committed batch. `on_failure` gets every sequence that cannot go on and
    the reason; it must finish the sequence, if that is not done.
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
        """Launch one step, if anything can run, and take in the one before it; without `overlap`
        the same one. Raises `DeviceLost`."""
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
        """Run a token that is nobody's, while no step is in flight. Raises `DeviceLost`.

        After an error of the kind that all later calls return, no request can be blamed.
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

    def _sample(self, flight: _InFlightStep) -> None:
        """Grammars have taken in the tokens of the step before: only now it is known what they
        allow. The forward runs meanwhile."""
        try:
            flight.handle.sample()
        except Exception as exc:
            self._in_flight = None
            self._recover(flight.batch, exc)

    def _finish(self, flight: _InFlightStep, then: Batch) -> bool:
        """Take in a step. Where it fails, the one scheduled after it is abandoned: it was built on
        tokens that never came."""
        try:
            token_ids = flight.handle.tokens()
        except Exception as exc:
            if then is not flight.batch and then.chunks:
                self._discard(then)
            self._recover(flight.batch, exc)
            return False
        self._commit(flight.batch, flight.handle, token_ids)
        return True

    def _discard(self, batch: Batch) -> None:
        flight, self._in_flight = self._in_flight, None
        if flight is not None:
            with suppress(Exception):
                flight.handle.tokens()  # the device is done with its pages
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
        """Nothing was committed, so every sequence can run again: out of memory, in smaller steps;
        otherwise alone, so that only the one that fails is lost."""
        batch = self._scheduler.abandon(batch)
        smaller = self._scheduler.max_num_batched_tokens // 2
        if _is_out_of_memory(exc) and smaller >= self._scheduler.max_num_seqs:
            logger.warning("out of memory: steps of at most %d tokens from now on", smaller)
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
            logger.exception("request %d fails alone", chunk.seq.request_id)
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
