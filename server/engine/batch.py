"""What the scheduler decides and the runner carries out. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that run in one step: `token_ids[start : start + num_tokens]`."""

    seq: Sequence
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Nothing of the sequence is left to compute after this: its next token is sampled."""
        end = self.start + self.num_tokens
        return end == len(self.seq.token_ids) and not self.seq.compiles


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs: decode tokens and prefill chunks of any mix of tasks."""

    chunks: list[Chunk]

    @property
    def sampled(self) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.samples]
