"""What one step asks of attention, whatever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from server.engine.memory.kv_pool import KvPool
from server.engine.memory.prefix import ResidentPrefix

ATTENTION_NAME = "foreword"
"""The name under which transformers finds the backend (`AttentionInterface`)."""


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's tokens of this step, and where its own KV lies."""

    request_id: int
    begin: int
    """First row in the packed batch."""
    num_tokens: int
    start: int
    """Own tokens before these, whose KV lie in the pool already."""
    pages: list[int]
    prefix: ResidentPrefix | None

    @property
    def end(self) -> int:
        return self.begin + self.num_tokens

    @property
    def num_prefix_tokens(self) -> int:
        return self.prefix.num_tokens if self.prefix is not None else 0


@dataclass(frozen=True, slots=True)
class Group:
    """All rows of one step that stand behind the same prefix; they are neighbours."""

    begin: int
    end: int
    prefix: ResidentPrefix


@dataclass(frozen=True, slots=True)
class Step:
    """One packed forward: T tokens of any mix of tasks, no padding."""

    input_ids: Tensor  # [1, T]
    position_ids: Tensor  # [1, T]
    logit_rows: Tensor  # [num_sampled]; rows whose logits are needed
    spans: list[Span]
    groups: list[Group]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one step can hold. Buffers that a captured forward reads are made for it."""

    num_heads: int
    """Of the queries (`LoadedModel.num_heads`); the pool knows those of the keys."""
    num_rows: int = 512
    """Rows of the largest forward, padding included."""
    num_spans: int = 64
    num_tokens: int = 4096
    """Of one sequence, its own."""


class AttentionBackend(Protocol):
    """Writes a step's keys and values into the pool and attends to prefix and own segments."""

    name: str
    """As in the setting `attention`."""

    graph_safe: bool
    """Whether a captured forward may be replayed. Then `plan` is all the host work of a step: it
    queues copies into buffers whose addresses are fixed since `allocate`, on the current stream,
    and does not wait for them; `attend` reads nothing of the step but these. A forward may have
    more rows than the step (a bucket): rows beyond it write nothing and give zeros. It may also
    run before any `plan`: then all rows are beyond the step. Kernels compile in the first forward
    of a size, so one goes before its capture."""

    def allocate(self, pool: KvPool, bounds: Bounds | None = None) -> None:
        """Before everything else. A second pool takes the place of the first, as long as nothing is
        captured. `bounds` concerns graph safe backends."""
        ...

    def plan(self, step: Step) -> None:
        """Host work that all layers of one step share."""
        ...

    def attend(
        self,
        module: Any,
        query: Tensor,  # [1, num_heads, T, head_dim]
        key: Tensor,  # [1, num_kv_heads, T, head_dim]
        value: Tensor,  # [1, num_kv_heads, T, head_dim]
        attention_mask: Tensor | None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The signature transformers calls. Returns [1, T, num_heads, head_dim]."""
        ...
