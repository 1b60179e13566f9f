"""The scheduler: decides what each step runs. No tensors here."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import count

from server.engine.params import Delta, Logprobs, QueueKey
from server.engine.scheduler.batch import Batch, BatchBuilder, Chunk
from server.engine.scheduler.client_shares import ClientShares
from server.engine.scheduler.fair_share import FairShare
from server.engine.scheduler.in_flight import InFlightBatches
from server.engine.scheduler.page_allocator import PageAllocator
from server.engine.scheduler.prompt_cache import PromptCache
from server.engine.scheduler.queues import Queues, by_rank
from server.engine.scheduler.resources import Prefixes, Resources
from server.engine.scheduler.sequence import Sequence, SequenceStatus

NO_LOGPROBS: Mapping[int, Logprobs] = {}
AGEING_STEPS = 100
"""Steps of waiting that raise a sequence by one level of priority, so that none starves."""


class Scheduler:
    """Builds the next batch from the waiting and the running sequences.

    Every running sequence decodes one token in every step. The rest of the token budget goes to
    prompts, in chunks: between tasks by `FairShare`, within a task by priority and arrival. Where
    several clients have sequences, `ClientShares` limits each of them. A sequence whose prefix is
    still loading is skipped. When pages run out, the newest sequence of the lowest priority is
    preempted: its pages are freed and its tokens are recomputed later.

    `schedule` may be called while one earlier batch is in flight, that is, not yet committed. Each
    row that the earlier batch samples then counts as one token of unknown id. Batches are committed
    in the order in which they were scheduled. If a sequence ends while it is in a batch in flight,
    its pages and its prefix are released once the last such batch is committed.
    """

    def __init__(
        self,
        allocator: PageAllocator,
        prefixes: Prefixes,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos_token_ids: Iterable[int],
        extra_tokens: int = 12,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.allocator = allocator
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.running: list[Sequence] = []  # in order of rank
        self.num_preemptions = 0
        self._sequences: dict[int, Sequence] = {}
        self._in_flight = InFlightBatches()
        self._resources = Resources(allocator, prefixes, prompt_cache, self._in_flight)
        self._queues = Queues(self._resources.has_prefix)
        self._shares = ClientShares(self._queues, self._resources, max_num_seqs, extra_tokens)
        self._fair_share = FairShare[QueueKey]()
        self._num_steps = 0
        self._arrivals = count()

    @property
    def waiting(self) -> list[Sequence]:
        return self._queues.waiting

    @property
    def has_work(self) -> bool:
        """Whether a step could compute anything. Sequences whose prefix is loading do not count."""
        if any(seq.num_unscheduled for seq in self.running):
            return True
        return any(self._queues.first(key) for key in self._queues.weights)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were served from the prompt cache."""
        return self._resources.num_cached_tokens

    def add(self, seq: Sequence) -> None:
        """Add a sequence and set its rank.

        All ranks age at the same rate, so the order of two sequences never changes.
        """
        self._resources.acquire_prefix(seq)
        level = seq.scheduling.priority * AGEING_STEPS
        seq.rank = (level + self._num_steps, next(self._arrivals))
        self._sequences[seq.request_id] = seq
        self._queues.add(seq)

    def can_hold(self, seq: Sequence) -> bool:
        """Return whether the pool is large enough for the sequence alone."""
        return self._resources.can_hold(seq)

    def cancel(self, request_id: int) -> None:
        """Finish a sequence. Unknown ids are ignored: they have finished meanwhile."""
        if (seq := self._sequences.get(request_id)) is not None:
            self.finish(seq)

    def finish(self, seq: Sequence) -> None:
        """End a sequence and release its pages and its prefix."""
        if seq.status is SequenceStatus.RUNNING:
            self._stop(seq)
        self._queues.remove(seq)
        del self._sequences[seq.request_id]
        self._resources.release_prefix(seq)

    # --- one step ---

    def schedule(self) -> Batch:
        """Return the next batch; empty if everything waits for the batch in flight."""
        assert not self._in_flight.is_full, "commit or abandon an earlier step first"
        self._num_steps += 1
        builder = BatchBuilder(self.max_num_batched_tokens)
        if self._shares.is_contended:
            self._start_clients_below_share(builder)
            builder.limits = self._shares.token_limits(self.running, builder.budget)
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
        """Apply the results of a batch and return the deltas to send.

        `token_ids` has one token for each of `batch.sampled`; the log-probabilities are by request
        id. Results of sequences that ended or were preempted meanwhile are dropped.
        """
        in_flight = self._in_flight.pop_oldest(batch)
        deltas: list[Delta] = []
        for chunk in batch.chunks:
            seq = chunk.seq
            if seq in in_flight.discarded:
                continue
            seq.num_computed = chunk.end
            seq.num_scheduled = max(seq.num_scheduled, chunk.end)
            if (scored := prompt_logprobs.get(seq.request_id)) is not None:
                seq.num_scored = chunk.end
                deltas.append(Delta(seq.request_id, [], None, prompt_logprobs=scored))
        deltas += [
            self._append(chunk.seq, token_id, logprobs.get(chunk.seq.request_id))
            for chunk, token_id in zip(batch.sampled, token_ids, strict=True)
            if chunk.seq not in in_flight.discarded
        ]
        self._resources.release(in_flight)
        return deltas

    def abandon(self, batch: Batch) -> Batch:
        """Undo the newest batch in flight, which failed, so that its sequences can run again.

        Returns the chunks that are still wanted, as a batch that may be run and committed as a
        whole or in parts.
        """
        in_flight = self._in_flight.pop_newest(batch)
        wanted = [chunk for chunk in batch.chunks if chunk.seq not in in_flight.discarded]
        for chunk in wanted:
            chunk.seq.num_scheduled = chunk.start
        self._resources.release(in_flight)
        return Batch([Chunk.of(chunk.seq, chunk.start, chunk.num_tokens) for chunk in wanted])

    def check(self) -> None:
        """Assert the invariants of pages, queues and limits."""
        held = [seq.pages for seq in self._sequences.values()]
        self.allocator.check([*held, *self._in_flight.pages])
        assert self.running == sorted(self.running, key=by_rank)
        assert len(self.running) <= self.max_num_seqs
        assert len(self.running) + len(self.waiting) == len(self._sequences)
        for key, num_running in Counter(seq.queue for seq in self.running).items():
            assert num_running == self._queues.num_running(key)

    # --- building a batch ---

    def _start_clients_below_share(self, builder: BatchBuilder) -> None:
        """Start sequences of clients that have too few, in the place of others' if need be."""
        for key in self._queues.weights:
            while (seq := self._queues.first_waiting(key)) is not None:
                if (preempted := self._shares.make_room(seq, self.running)) is None:
                    break
                for other in preempted:
                    self._preempt(other, builder)
                if not self._admit(seq):
                    builder.can_admit = False  # its pages are free after the step in flight
                    return

    def _decode(self, builder: BatchBuilder) -> Counter[QueueKey]:
        """Add one token of each decoding sequence, and collect the prefills.

        Returns the number of decode tokens by queue.
        """
        num_decodes: Counter[QueueKey] = Counter()
        for seq in list(self.running):
            if seq.status is not SequenceStatus.RUNNING:
                continue  # preempted for the sake of an earlier one
            num_unscheduled = seq.num_unscheduled
            if num_unscheduled > 1:
                builder.prefills.setdefault(seq.queue, []).append(seq)
            elif num_unscheduled == 1 and builder.room(seq.queue.client) > 0:
                num_decodes[seq.queue] += self._schedule_tokens(seq, 1, builder)
        return num_decodes

    def _prefill(self, builder: BatchBuilder, num_decodes: Counter[QueueKey]) -> None:
        """Give turns to queues with prompts, until the token budget or the prompts run out."""
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
            key = self._fair_share.next_queue(in_turn)
            if num_tokens := self._schedule_prefill(key, builder):
                self._fair_share.charge(key, num_tokens)
            else:
                in_turn.remove(key)

    def _schedule_prefill(self, key: QueueKey, builder: BatchBuilder) -> int:
        """Add a chunk of a queue's prompt. Returns its length; 0 if there is nothing to add."""
        seq = self._next_prefill(key, builder) if builder.room(key.client) > 0 else None
        if seq is None:
            return 0
        most = min(builder.room(key.client), self._fair_share.budget(key))
        return self._schedule_tokens(seq, min(most, builder.num_left(seq)), builder)

    def _next_prefill(self, key: QueueKey, builder: BatchBuilder) -> Sequence | None:
        """Return the first sequence of a queue to prefill, running or admitted now."""
        running = builder.first_prefill(key)
        may_admit = builder.can_admit and key.client not in builder.waiting_clients
        if not may_admit or len(self.running) >= self.max_num_seqs:
            return running
        waiting = self._queues.first(key)
        if waiting is None or (running is not None and running.rank < waiting.rank):
            return running
        if not self._admit(waiting):
            builder.waiting_clients |= self._shares.that_wait_for(waiting, self.running)
            return running
        builder.prefills[key].insert(0, waiting)
        return waiting

    def _admit(self, seq: Sequence) -> bool:
        """Start a sequence if all of it fits into the pool now, so that prefills do not thrash."""
        if not self._resources.attach_cached_pages(seq):
            return False
        self._queues.start(seq)
        insort(self.running, seq, key=by_rank)
        return True

    def _schedule_tokens(self, seq: Sequence, num_tokens: int, builder: BatchBuilder) -> int:
        """Add `num_tokens` of a sequence, preempting others for pages.

        Returns 0 if it has to wait for the step in flight, or was itself preempted.
        """
        end = builder.end(seq) + num_tokens
        while not self._resources.grow(seq, end):
            builder.can_admit = False  # a preempted sequence must not be admitted again at once
            if self._resources.fits_after_steps_in_flight(seq, end):
                return 0
            lowest = self._shares.lowest(self.running)
            self._preempt(lowest, builder)
            if lowest is seq:
                return 0
        builder.add(seq, num_tokens)
        return num_tokens

    def _preempt(self, seq: Sequence, builder: BatchBuilder) -> None:
        """Stop a running sequence; it will be started again, and recomputed."""
        builder.num_tokens.pop(seq, None)
        self._stop(seq)
        self._queues.preempt(seq)
        self.num_preemptions += 1

    # --- applying results ---

    def _append(self, seq: Sequence, token_id: int, logprobs: Logprobs | None) -> Delta:
        seq.append(token_id)
        self._resources.cache_full_pages(seq)
        reason = seq.finish_reason_after(token_id, self.eos_token_ids)
        if reason is not None:
            self.finish(seq)
        return Delta(seq.request_id, [token_id], reason, seq.num_cached_tokens or 0, logprobs)

    def _stop(self, seq: Sequence) -> None:
        """Stop a running sequence. Pages that a step in flight may write to are freed after it."""
        self.running.remove(seq)
        self._resources.release_pages(seq)
        self._in_flight.discard(seq)
        seq.num_computed = seq.num_scheduled = 0
