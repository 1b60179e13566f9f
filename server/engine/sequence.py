"""One prompt on its way to a completion. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from prefix_store.digest import Digest
from server.engine.messages import FinishReason, Sampling


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """Token ids behind a prefix, and how far they have been computed."""

    request_id: int
    prefix: Digest | None
    token_ids: list[int]
    """The prompt, then the completion as it grows."""
    sampling: Sampling
    compiles: bool = False
    """Runs only to leave its own KV behind: text or a soft prompt on its way to a prefix."""
    status: SequenceStatus = SequenceStatus.WAITING
    num_prompt_tokens: int = field(init=False)
    num_computed: int = 0
    """Leading tokens whose keys and values lie in the pool."""
    pages: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    def finish_reason_after(
        self, token_id: int, eos_token_ids: frozenset[int]
    ) -> FinishReason | None:
        """Why the sequence ends with this token, the latest of `token_ids`; None if it goes on."""
        if token_id in eos_token_ids and not self.sampling.ignore_eos:
            return "stop"
        return "length" if self.num_completion_tokens >= self.sampling.max_tokens else None
