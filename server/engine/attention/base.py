"""The attention interface: the packed batch of one step, and what every backend implements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix


@dataclass(frozen=True, slots=True)
class QuerySpan:
    """The tokens that one sequence computes in this step, and the pages of its own KV."""

    request_id: int
    begin: int
    """First row in the packed batch."""
    num_tokens: int
    num_computed_tokens: int
    """Number of the sequence's own tokens before these, whose KV is already in the pool."""
    pages: list[int]
    prefix: ResidentPrefix | None

    @property
    def end(self) -> int:
        return self.begin + self.num_tokens

    @property
    def seq_len(self) -> int:
        """Number of the sequence's own tokens after this step."""
        return self.num_computed_tokens + self.num_tokens

    @property
    def num_prefix_tokens(self) -> int:
        return self.prefix.num_tokens if self.prefix is not None else 0


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Consecutive rows [begin, end) of one step that share a prefix."""

    begin: int
    end: int
    prefix: ResidentPrefix


@dataclass(frozen=True, slots=True)
class Step:
    """One packed forward: T tokens of any mix of tasks, no padding."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    logit_rows: Tensor  # [num_sampled]; rows whose logits are needed
    spans: list[QuerySpan]
    groups: list[PrefixGroup]


@dataclass(frozen=True, slots=True)
class BatchCapacity:
    """Capacity of one step. The buffers that a captured forward reads are allocated for it."""

    num_heads: int
    """Query heads (`LoadedModel.num_heads`); the pool knows the number of KV heads."""
    max_num_rows: int = 512
    """Rows of the largest forward, including padding."""
    max_num_seqs: int = 64
    """Sequences in a step."""
    max_seq_len: int = 4096
    """Maximum own tokens of one sequence, without its prefix."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The options with which a layer calls attention."""

    scaling: float
    """Factor of the scores."""
    sliding_window: int | None = None
    """Tokens that a query sees, itself included; None: all."""
    softcap: float | None = None
    """Scores are replaced by softcap * tanh(score / softcap)."""
    sinks: Tensor | None = None  # [num_heads]; the score of a key without a value


class AttentionBackend(Protocol):
    """Writes a step's keys and values into the pool and attends to prefixes and own tokens."""

    name: str
    """Value of the setting `attention` that selects this backend."""

    graph_safe: bool
    """Whether a captured forward may be replayed for other steps.

    If so, `plan` does all of a step's host work: it queues copies, on the current stream and
    without waiting for them, into buffers whose addresses are fixed by `allocate`. `attend` reads
    nothing else of the step. A forward may have more rows than the step (a bucket): the rows past
    the step write nothing and return zeros. A forward may also run before the first `plan`: then
    every row is past the step. Kernels compile in the first forward of a size, so a forward of
    that size must run before its capture.
    """

    def allocate(self, pool: KvPool, capacity: BatchCapacity | None = None) -> None:
        """Attach the KV pool and allocate buffers. Must be called before `plan` and `attend`.

        A second call replaces the pool, which is allowed until a forward is captured. Only
        graph-safe backends need `capacity`.
        """
        ...

    def plan(self, step: Step) -> None:
        """Do the host work of one step that all its layers share."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Write the new keys and values of one layer and attend to all visible ones.

        q: [num_heads, T, head_dim]; k and v: [num_kv_heads, T, head_dim].
        Returns [T, num_heads, head_dim].
        """
        ...
