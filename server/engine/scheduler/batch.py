"""The batch of a step: built by the scheduler, run by the runner. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.params import QueueKey
from server.engine.scheduler.sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that run in one step: `token_ids[start : start + num_tokens]`."""

    seq: Sequence
    start: int
    num_tokens: int
    samples: bool
    """Whether the next token is sampled, because the chunk ends with the last known token."""
    input_in_flight: bool
    """Whether the input is the token that the step in flight samples, whose id is not known yet."""

    @classmethod
    def of(cls, seq: Sequence, start: int, num_tokens: int) -> Chunk:
        end, num_known = start + num_tokens, len(seq.token_ids)
        samples = end >= num_known and not seq.compiles
        return cls(seq, start, num_tokens, samples, input_in_flight=end > num_known)

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def awaits_mask(self) -> bool:
        """Whether the sequence's grammar mask depends on the token in flight."""
        return self.input_in_flight and self.seq.matcher is not None

    @property
    def num_completion_tokens(self) -> int:
        """Completion tokens before the one sampled here, including a token in flight."""
        return self.end - self.seq.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of one step: decode tokens and prefill chunks of any mix of tasks."""

    chunks: list[Chunk]

    @property
    def sampled(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.samples]


@dataclass(eq=False, slots=True)
class BatchBuilder:
    """Builder of a batch: the number of tokens of each sequence, and the token budget left."""

    budget: int
    limits: dict[int, int] = field(default_factory=dict)
    """Tokens left of clients whose share of the step is limited."""
    num_tokens: dict[Sequence, int] = field(default_factory=dict)
    prefills: dict[QueueKey, list[Sequence]] = field(default_factory=dict)
    """Running sequences with more than one token to compute, by queue, in order of rank."""
    can_admit: bool = True
    """Whether waiting sequences may still be started in this step."""
    waiting_clients: set[int] = field(default_factory=set)
    """Clients that leave free pages to a waiting sequence, and start none in this step."""

    def add(self, seq: Sequence, num_tokens: int) -> None:
        """Add the next `num_tokens` of a sequence."""
        self.num_tokens[seq] = self.num_tokens.get(seq, 0) + num_tokens
        self.budget -= num_tokens
        if self.limits and seq.queue.client in self.limits:
            self.limits[seq.queue.client] -= num_tokens

    def room(self, client: int) -> int:
        """Return how many tokens of a client can still be added."""
        if not self.limits:
            return self.budget
        return min(self.budget, self.limits.get(client, self.budget))

    def end(self, seq: Sequence) -> int:
        """Return how many tokens of a sequence will have been computed after this step."""
        return seq.num_scheduled + self.num_tokens.get(seq, 0)

    def num_left(self, seq: Sequence) -> int:
        """Return how many tokens of a sequence could still be added."""
        return seq.num_unscheduled - self.num_tokens.get(seq, 0)

    def first_prefill(self, queue: QueueKey) -> Sequence | None:
        """Return the first prefill of a queue that has not been preempted and has tokens left."""
        prefills = self.prefills.setdefault(queue, [])
        while prefills and not (
            prefills[0].status is SequenceStatus.RUNNING and self.num_left(prefills[0])
        ):
            prefills.pop(0)
        return prefills[0] if prefills else None

    def build(self) -> Batch:
        """Return the batch and mark its tokens as scheduled."""
        chunks = [Chunk.of(seq, seq.num_scheduled, n) for seq, n in self.num_tokens.items()]
        for chunk in chunks:
            chunk.seq.num_scheduled = chunk.end
        return Batch(chunks)
