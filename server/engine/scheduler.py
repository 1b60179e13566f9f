"""Decides who runs next, and only that: it never sees a tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from prefix_store.digest import Digest
from server.engine.batch import Batch, Chunk
from server.engine.kv_pool import PageAllocator
from server.engine.messages import Delta
from server.engine.sequence import Sequence, SequenceStatus


class Prefixes(Protocol):
    """The scheduler's view of residency: references, not tensors."""

    def refer(self, digest: Digest) -> None:
        """Ask for a prefix, and keep it from being evicted until `release`."""
        ...

    def release(self, digest: Digest) -> None: ...

    def is_ready(self, digest: Digest) -> bool: ...


class Scheduler:
    """Waiting and running sequences -> the next batch.

    Decode first, then prefill in chunks under a token budget, in order of arrival. A sequence whose
    prefix is still loading is passed over. When pages run out the newest sequence is preempted: its
    pages are freed and its tokens recomputed later.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        prefixes: Prefixes,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos_token_ids: Iterable[int],
    ) -> None:
        self.allocator = allocator
        self.prefixes = prefixes
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """A step would do something now; sequences that wait for a prefix do not count."""
        return bool(self.running) or any(map(self._is_runnable, self.waiting))

    def add(self, seq: Sequence) -> None:
        if seq.prefix is not None:
            self.prefixes.refer(seq.prefix)
        self.waiting.append(seq)

    def cancel(self, request_id: int) -> None:
        """Drop a sequence wherever it is; unknown ids are those that finished meanwhile."""
        for seq in (*self.running, *self.waiting):
            if seq.request_id == request_id:
                self.finish(seq)

    def finish(self, seq: Sequence) -> None:
        """Let go of everything the sequence holds."""
        (self.running if seq.status is SequenceStatus.RUNNING else self.waiting).remove(seq)
        seq.status = SequenceStatus.FINISHED
        self.allocator.free(seq.pages)
        if seq.prefix is not None:
            self.prefixes.release(seq.prefix)

    def schedule(self) -> Batch:
        chunks: list[Chunk] = []
        budget = self.max_num_batched_tokens
        num_preemptions = self.num_preemptions
        decode_first = sorted(self.running, key=lambda seq: seq.num_uncomputed > 1)
        for seq in decode_first:
            if seq.status is SequenceStatus.RUNNING and budget > 0:
                budget -= self._take(seq, budget, chunks)
        if self.num_preemptions > num_preemptions:  # no room: what left must not come straight back
            budget = 0
        for seq in self._admissible():
            if budget <= 0 or len(self.running) >= self.max_num_seqs or not self._admit(seq):
                break
            budget -= self._take(seq, budget, chunks)
        return Batch([chunk for chunk in chunks if chunk.seq.status is SequenceStatus.RUNNING])

    def commit(self, batch: Batch, token_ids: list[int]) -> list[Delta]:
        """Advance what a step ran by `token_ids`, one for each of `batch.sampled`.

        Sequences that were finished meanwhile, because they failed, are left out.
        """
        sampled = batch.sampled
        for chunk in batch.chunks:
            chunk.seq.num_computed = chunk.start + chunk.num_tokens
        return [
            self._append(chunk.seq, token_id)
            for chunk, token_id in zip(sampled, token_ids, strict=True)
            if chunk.seq.status is SequenceStatus.RUNNING
        ]

    def check(self) -> None:
        """The invariant: every page is free or belongs to exactly one sequence."""
        held = [page for seq in (*self.running, *self.waiting) for page in seq.pages]
        assert len(held) == len(set(held))
        assert len(held) + self.allocator.num_free == self.allocator.num_pages

    def _append(self, seq: Sequence, token_id: int) -> Delta:
        seq.token_ids.append(token_id)
        reason = seq.finish_reason_after(token_id, self.eos_token_ids)
        if reason is not None:
            self.finish(seq)
        return Delta(seq.request_id, [token_id], reason)

    def _is_runnable(self, seq: Sequence) -> bool:
        return seq.prefix is None or self.prefixes.is_ready(seq.prefix)

    def _admissible(self) -> list[Sequence]:
        return [seq for seq in self.waiting if self._is_runnable(seq)]

    def _admit(self, seq: Sequence) -> bool:
        """Start a sequence if the pool holds all it has to compute: prefills do not thrash."""
        if self.allocator.num_pages_for(len(seq.token_ids)) > self.allocator.num_free:
            return False
        self.waiting.remove(seq)
        seq.status = SequenceStatus.RUNNING
        self.running.append(seq)
        return True

    def _take(self, seq: Sequence, budget: int, chunks: list[Chunk]) -> int:
        """Give a sequence its part of the step; returns the number of tokens."""
        num_tokens = min(budget, seq.num_uncomputed)
        while not self.allocator.grow(seq.pages, seq.num_computed + num_tokens):
            if self._preempt_newest() is seq:
                return 0
        chunks.append(Chunk(seq, seq.num_computed, num_tokens))
        return num_tokens

    def _preempt_newest(self) -> Sequence:
        seq = self.running.pop()
        seq.status = SequenceStatus.WAITING
        seq.num_computed = 0
        self.allocator.free(seq.pages)
        self.waiting.appendleft(seq)
        self.num_preemptions += 1
        return seq
