"""Decides who runs next, and only that: it never sees a tensor."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Protocol

from prefix_store.digest import Digest
from server.engine.params import Delta, Logprobs
from server.engine.scheduler.batch import Batch, BatchBuilder, Chunk
from server.engine.scheduler.fair_share import FairShare
from server.engine.scheduler.in_flight import InFlightBatch, InFlightBatches
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.queues import Queues, by_rank
from server.engine.scheduler.sequence import Sequence, SequenceStatus

NO_LOGPROBS: Mapping[int, Logprobs] = {}
AGEING_STEPS = 100
"""Steps of waiting that are worth one level of priority: nobody is overtaken for ever."""


class Prefixes(Protocol):
    """The scheduler's view of residency: references, not tensors."""

    def acquire(self, digest: Digest) -> None:
        """Ask for a prefix, and keep it from being evicted until `release`."""
        ...

    def release(self, digest: Digest) -> None: ...

    def is_resident(self, digest: Digest) -> bool: ...


class Scheduler:
    """Waiting and running sequences -> the next batch.

    Every running sequence decodes in every step. What the token budget leaves goes to prompts, in
    chunks, in fair turns over tasks (`FairShare`); within a task by priority and arrival. A
    sequence whose prefix is still loading is passed over. When pages run out, the newest of the
    lowest priority is preempted: its pages are freed and its tokens recomputed later.

    `schedule` may be called while one earlier batch is in flight, that is, not committed: each row
    that the earlier one samples counts as one token whose id is not known yet. `commit` follows in
    the order of `schedule`. Pages and prefixes of a sequence that ends in between stay untouched
    until the last batch that names it is committed.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        prefixes: Prefixes,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos_token_ids: Iterable[int],
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.allocator = allocator
        self.prefixes = prefixes
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self._prompt_cache = prompt_cache
        self.running: list[Sequence] = []  # in the order of ranks
        self.num_preemptions = 0
        self._sequences: dict[int, Sequence] = {}
        self._queues = Queues(self._is_runnable)
        self._fair_share = FairShare()
        self._in_flight = InFlightBatches()
        self._num_steps = 0
        self._arrivals = count()

    @property
    def waiting(self) -> list[Sequence]:
        return self._queues.waiting

    @property
    def has_work(self) -> bool:
        """A step would do something now; sequences that wait for a prefix do not count."""
        if any(seq.num_unscheduled for seq in self.running):
            return True
        return any(self._queues.first(key) for key in self._queues.weights)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found computed."""
        return self._prompt_cache.num_cached_tokens if self._prompt_cache is not None else 0

    def add(self, seq: Sequence) -> None:
        """Take a sequence in. Ranks age all alike, so an order once found holds for ever."""
        if seq.prefix is not None:
            self.prefixes.acquire(seq.prefix)
        level = seq.scheduling.priority * AGEING_STEPS
        seq.rank = (level + self._num_steps, next(self._arrivals))
        self._sequences[seq.request_id] = seq
        self._queues.add(seq)

    def can_hold(self, seq: Sequence) -> bool:
        """Whether the pool is large enough for a sequence that has it for itself."""
        return self.allocator.num_pages_for(seq.max_slots) <= self.allocator.num_pages

    def cancel(self, request_id: int) -> None:
        """Drop a sequence wherever it is; unknown ids are those that finished meanwhile."""
        if (seq := self._sequences.get(request_id)) is not None:
            self.finish(seq)

    def finish(self, seq: Sequence) -> None:
        """Let go of everything the sequence holds."""
        if seq.status is SequenceStatus.RUNNING:
            self._stop(seq)
        self._queues.remove(seq)
        del self._sequences[seq.request_id]
        if seq.prefix is None:
            return
        if (last := self._in_flight.last_with(seq)) is not None:
            last.prefixes.append(seq.prefix)
        else:
            self.prefixes.release(seq.prefix)

    # --- one step ---

    def schedule(self) -> Batch:
        """The next step. Empty if all that could run waits for the one in flight."""
        assert not self._in_flight.is_full, "commit or abandon an earlier step first"
        self._num_steps += 1
        builder = BatchBuilder(self.max_num_batched_tokens)
        num_decodes = self._decode(builder)
        self._prefill(builder, num_decodes)
        batch = builder.build()
        self._in_flight.append(batch)
        return batch

    def commit(
        self,
        batch: Batch,
        token_ids: list[int],
        logprobs: Mapping[int, Logprobs] = NO_LOGPROBS,
        prompt_logprobs: Mapping[int, Logprobs] = NO_LOGPROBS,
    ) -> list[Delta]:
        """Take in what a step ran: `token_ids`, one for each of `batch.sampled`, and what was asked
        for beside them, by request.

        Sequences that ended or were preempted meanwhile are left out.
        """
        flight = self._in_flight.pop_oldest(batch)
        deltas: list[Delta] = []
        for chunk in batch.chunks:
            seq = chunk.seq
            if seq in flight.discarded:
                continue
            seq.num_computed = chunk.end
            seq.num_scheduled = max(seq.num_scheduled, chunk.end)
            if (scores := prompt_logprobs.get(seq.request_id)) is not None:
                seq.num_scored = chunk.end
                deltas.append(Delta(seq.request_id, [], None, prompt_logprobs=scores))
        deltas += [
            self._append(chunk.seq, token_id, logprobs.get(chunk.seq.request_id))
            for chunk, token_id in zip(batch.sampled, token_ids, strict=True)
            if chunk.seq not in flight.discarded
        ]
        self._release(flight)
        return deltas

    def abandon(self, batch: Batch) -> Batch:
        """Undo a step that failed, the newest in flight: its sequences can run again.

        Returns what of it is still wanted, which may be run and committed, whole or in parts.
        """
        flight = self._in_flight.pop_newest(batch)
        wanted = [chunk for chunk in batch.chunks if chunk.seq not in flight.discarded]
        for chunk in wanted:
            chunk.seq.num_scheduled = chunk.start
        self._release(flight)
        return Batch([Chunk.of(chunk.seq, chunk.start, chunk.num_tokens) for chunk in wanted])

    def check(self) -> None:
        """The invariants: every page is owned, kept or free; queues and limits agree."""
        held = [seq.pages for seq in self._sequences.values()]
        self.allocator.check([*held, *self._in_flight.pages])
        assert self.running == sorted(self.running, key=by_rank)
        assert len(self.running) <= self.max_num_seqs
        assert len(self.running) + len(self.waiting) == len(self._sequences)
        for key, num_running in Counter(seq.scheduling.queue for seq in self.running).items():
            assert num_running == self._queues.num_running(key)

    # --- what runs in a step ---

    def _decode(self, builder: BatchBuilder) -> Counter[int]:
        """One token for whoever lacks one; those that lack more are prefills. Counts by queue."""
        num_decodes: Counter[int] = Counter()
        for seq in list(self.running):
            if seq.status is not SequenceStatus.RUNNING:
                continue  # preempted by one before it
            num_unscheduled = seq.num_unscheduled
            if num_unscheduled > 1:
                builder.prefills.setdefault(seq.scheduling.queue, []).append(seq)
            elif num_unscheduled == 1 and builder.budget > 0:
                num_decodes[seq.scheduling.queue] += self._schedule_tokens(seq, 1, builder)
        return num_decodes

    def _prefill(self, builder: BatchBuilder, num_decodes: Counter[int]) -> None:
        """Turns of the tasks that have something to compute, until the budget or they run out."""
        weights = {
            key: weight
            for key, weight in self._queues.weights.items()
            if builder.first_prefill(key) or self._queues.first(key)
        }
        self._fair_share.start_step(weights)
        for key, num_tokens in num_decodes.items():
            self._fair_share.charge(key, num_tokens)
        has_room = len(self.running) < self.max_num_seqs
        in_turn = {key for key in weights if has_room or builder.first_prefill(key)}
        while builder.budget > 0 and in_turn:
            key = self._fair_share.next_task(in_turn)
            if num_tokens := self._schedule_prefill(key, builder):
                self._fair_share.charge(key, num_tokens)
            else:
                in_turn.remove(key)

    def _schedule_prefill(self, key: int, builder: BatchBuilder) -> int:
        """Let a task compute some of a prompt; 0 if it cannot compute any more in this step."""
        seq = self._next_prefill(key, builder)
        if seq is None:
            return 0
        wanted = min(builder.budget, builder.num_left(seq), self._fair_share.budget(key))
        return self._schedule_tokens(seq, wanted, builder)

    def _next_prefill(self, key: int, builder: BatchBuilder) -> Sequence | None:
        """Of a task: whoever comes first, of those that run already and those that wait."""
        running = builder.first_prefill(key)
        if not builder.can_admit or len(self.running) >= self.max_num_seqs:
            return running
        waiting = self._queues.first(key)
        if waiting is None or (running is not None and running.rank < waiting.rank):
            return running
        if not self._admit(waiting):
            builder.can_admit = False  # nobody overtakes it, or it might never find enough pages
            return running
        builder.prefills[key].insert(0, waiting)
        return waiting

    def _is_runnable(self, seq: Sequence) -> bool:
        return seq.prefix is None or self.prefixes.is_resident(seq.prefix)

    def _admit(self, seq: Sequence) -> bool:
        """Start a sequence if the pool holds all it has to compute: prefills do not thrash."""
        found = self._prompt_cache.find(seq) if self._prompt_cache is not None else []
        if not self.allocator.fits(len(seq.token_ids), found):
            return False
        if self._prompt_cache is not None:
            self._prompt_cache.attach(seq, found)
        self._queues.start(seq)
        insort(self.running, seq, key=by_rank)
        return True

    def _schedule_tokens(self, seq: Sequence, num_tokens: int, builder: BatchBuilder) -> int:
        """Give a sequence its part of the step; returns the number of tokens."""
        end = builder.end(seq) + num_tokens
        while not self.allocator.grow(seq.pages, end):
            builder.can_admit = False  # no room: what leaves must not come straight back
            num_coming = sum(map(len, self._in_flight.pages))
            missing = self.allocator.num_pages_for(end) - len(seq.pages)
            if missing <= self.allocator.num_free + num_coming:
                return 0  # after the step in flight there is room
            if self._preempt_lowest(builder) is seq:
                return 0
        builder.add(seq, num_tokens)
        return num_tokens

    def _preempt_lowest(self, builder: BatchBuilder) -> Sequence:
        seq = self.running[-1]
        builder.num_tokens.pop(seq, None)
        self._stop(seq)
        self._queues.preempt(seq)
        self.num_preemptions += 1
        return seq

    # --- what becomes of it ---

    def _append(self, seq: Sequence, token_id: int, scores: Logprobs | None) -> Delta:
        seq.append(token_id)
        if self._prompt_cache is not None:
            self._prompt_cache.cache_full_pages(seq)
        reason = seq.finish_reason_after(token_id, self.eos_token_ids)
        if reason is not None:
            self.finish(seq)
        return Delta(seq.request_id, [token_id], reason, seq.num_cached_tokens or 0, scores)

    def _stop(self, seq: Sequence) -> None:
        """Run no more. Pages that a step in flight may write to are freed after it."""
        self.running.remove(seq)
        pages, seq.pages = seq.pages, []
        if (last := self._in_flight.last_with(seq)) is not None:
            last.pages += pages
        else:
            self.allocator.free(pages)
        self._in_flight.discard(seq)
        seq.num_computed = seq.num_scheduled = 0

    def _release(self, flight: InFlightBatch) -> None:
        self.allocator.free(flight.pages)
        for prefix in flight.prefixes:
            self.prefixes.release(prefix)
