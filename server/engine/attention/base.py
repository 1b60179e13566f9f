"""The attention interface: the packed batch of one step, and what every backend implements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix

# A step has a span and a segment for each sequence. They are named tuples because creating a frozen
# dataclass takes three times as long.


class QuerySpan(NamedTuple):
    """The tokens that one sequence computes in this step, and the pages where their keys and values
    are written."""

    request_id: int
    begin: int
    """First row in the packed batch."""
    num_tokens: int
    num_computed_tokens: int
    """Number of the sequence's own tokens before these, whose KV is already in the pool."""
    pages: list[int]
    num_prefix_tokens: int = 0
    """Positions taken by its prefix, before its own first token."""

    @property
    def end(self) -> int:
        return self.begin + self.num_tokens

    @property
    def seq_len(self) -> int:
        """Number of the sequence's own tokens after this step."""
        return self.num_computed_tokens + self.num_tokens

    @property
    def first_position(self) -> int:
        """Position of its first row among all keys of the sequence, prefix included.

        The model's position ids can differ: see `ResidentPrefix.position_offset`.
        """
        return self.num_prefix_tokens + self.num_computed_tokens


class Segment(NamedTuple):
    """A run of keys and values, and the rows [begin, end) of a step that attend to it.

    The keys are the first `num_keys` in one of two places: a tensor of its own, `kv`, or `pages` of
    the pool. A row attends to the keys of all its segments, with one softmax over them.
    """

    begin: int
    end: int
    num_keys: int
    first_position: int | None
    """Position of the first key, from which the others count up; None: the keys have no positions,
    so that all are visible, whatever the window."""
    causal: bool
    """Whether a row sees only keys up to its own position, which the keys then must have. The last
    key is that of the last row."""
    kv: Tensor | None = None  # [num_layers, 2, num_kv_heads, num_slots, head_dim]
    pages: Sequence[int] = ()
    bias: Tensor | None = None  # [num_keys], float32; added to the scores, after any soft cap

    @classmethod
    def of_prefix(cls, begin: int, end: int, prefix: ResidentPrefix) -> Segment:
        """Return the segment of consecutive rows that share a prefix."""
        return cls(begin, end, prefix.num_tokens, 0, False, prefix.kv)

    @classmethod
    def own(cls, span: QuerySpan) -> Segment:
        """Return the segment of a sequence's own keys, those of this step included."""
        _, begin, num_tokens, num_computed_tokens, pages, first_position = span
        num_keys = num_computed_tokens + num_tokens
        return cls(begin, begin + num_tokens, num_keys, first_position, True, None, pages)


class UnsupportedSegment(Exception):
    """The attention backend does not compute a segment of this kind. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Step:
    """One packed forward: T tokens of any mix of tasks, no padding."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    logit_rows: Tensor  # [num_sampled]; rows whose logits are needed
    spans: list[QuerySpan]
    """From row 0 on, in order. The keys and values of later rows are not written."""
    segments: list[Segment]
    """What the rows attend to. Those that more rows share come first; own keys follow the order of
    `spans`."""

    def segments_beside_own(self) -> list[Segment] | None:
        """Return the segments that are not a sequence's own keys.

        Returns None if the step is of another kind: a sequence does not see its own keys, or sees
        others with a causal mask.
        """
        causal = [segment for segment in self.segments if segment.causal]
        if causal != [*map(Segment.own, self.spans)]:
            return None
        return [segment for segment in self.segments if not segment.causal]


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
    """Writes a step's keys and values into the pool and attends to the step's segments."""

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
        """Do the host work of one step that all its layers share.

        Raises `UnsupportedSegment` if a segment is of a kind that the backend does not compute.
        """
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Write the new keys and values of one layer and attend to the visible ones.

        q: [num_heads, T, head_dim]; k and v: [num_kv_heads, T, head_dim], of which only rows of a
        span are read.
        Returns [T, num_heads, head_dim].
        """
        ...
