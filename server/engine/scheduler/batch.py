"""What the scheduler decides and the runner carries out. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.engine.scheduler.sequence import Sequence, SequenceStatus


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that run in one step: `token_ids[start : start + num_tokens]`."""

    seq: Sequence
    start: int
    num_tokens: int
    samples: bool
    """Nothing of the sequence is left to compute after this: its next token is sampled."""
    input_in_flight: bool
    """Its one input token is what the step before samples for this sequence: no id is known yet."""

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
        """What its grammar allows depends on the token that is in flight."""
        return self.input_in_flight and self.seq.matcher is not None

    @property
    def num_completion_tokens(self) -> int:
        """Of the sequence, before the one that is sampled here, in flight or not."""
        return self.end - self.seq.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs: decode tokens and prefill chunks of any mix of tasks."""

    chunks: list[Chunk]

    @property
    def sampled(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.samples]


@dataclass(eq=False, slots=True)
class BatchBuilder:
    """A batch in the making: how many tokens of whom, and how many more may come."""

    budget: int
    num_tokens: dict[Sequence, int] = field(default_factory=dict)
    prefills: dict[int, list[Sequence]] = field(default_factory=dict)
    """Sequences that run and lack more than one token, by queue, in the order of their ranks."""
    can_admit: bool = True
    """Sequences that wait may still be started."""

    def add(self, seq: Sequence, num_tokens: int) -> None:
        self.num_tokens[seq] = self.num_tokens.get(seq, 0) + num_tokens
        self.budget -= num_tokens

    def end(self, seq: Sequence) -> int:
        """Tokens of a sequence that are computed after this step."""
        return seq.num_scheduled + self.num_tokens.get(seq, 0)

    def num_left(self, seq: Sequence) -> int:
        return seq.num_unscheduled - self.num_tokens.get(seq, 0)

    def first_prefill(self, queue: int) -> Sequence | None:
        """Of those that have not been preempted since, and want more of this step."""
        prefills = self.prefills.setdefault(queue, [])
        while prefills and not (
            prefills[0].status is SequenceStatus.RUNNING and self.num_left(prefills[0])
        ):
            prefills.pop(0)
        return prefills[0] if prefills else None

    def build(self) -> Batch:
        """The batch; from here on its tokens count as scheduled."""
        chunks = [Chunk.of(seq, seq.num_scheduled, n) for seq, n in self.num_tokens.items()]
        for chunk in chunks:
            chunk.seq.num_scheduled = chunk.end
        return Batch(chunks)
