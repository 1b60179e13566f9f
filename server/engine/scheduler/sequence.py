"""A request inside the engine: its tokens and their progress. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from prefix_store.digest import Digest
from server.engine.grammar import Matcher
from server.engine.params import FinishReason, QueueKey, SamplingParams, SchedulingParams


class SequenceStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """Token ids after a prefix, and how many of them have been computed."""

    request_id: int
    prefix: Digest | None
    token_ids: list[int]
    """The prompt, then the completion as it grows."""
    sampling: SamplingParams
    scheduling: SchedulingParams = field(default_factory=SchedulingParams)
    compiles: bool = False
    """Whether it runs to produce a prefix: its own keys and values. Samples nothing."""
    verifies: bool = False
    """Whether it runs to verify a prefix, on pages that are not shared."""
    matcher: Matcher | None = None
    """State of the completion in its grammar, if it has one."""
    status: SequenceStatus = SequenceStatus.WAITING
    rank: tuple[int, int] = (0, 0)
    """Set once by the scheduler. A lower rank runs first and is preempted last."""
    queue: QueueKey = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed: int = 0
    """Leading tokens whose keys and values are in the pool."""
    num_scheduled: int = 0
    """Leading tokens computed or in flight. Can exceed the known token ids by one or two."""
    pages: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """Block hashes of the first full pages, as far as the prompt cache has needed them."""
    num_hashed_pages: int = 0
    """Leading pages that were put into the prompt cache, or taken from it."""
    num_scored: int = 0
    """Leading prompt tokens whose successor's log-probability was sent, or is not requested."""
    num_cached_tokens: int | None = None
    """Prompt tokens served from the prompt cache; None before the first admission."""

    def __post_init__(self) -> None:
        self.queue = self.scheduling.key
        self.num_prompt_tokens = len(self.token_ids)
        self.num_scored = self.sampling.first_scored - 1

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_slots(self) -> int:
        """Most tokens it can hold in the pool. The last sampled token is never computed."""
        return self.num_prompt_tokens + max(0, self.sampling.max_tokens - 1)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_unscheduled(self) -> int:
        """Tokens that the next step can compute.

        A token in flight, whose id is not known yet, counts as one unless it is the last that
        `max_tokens` allows.
        """
        if self.compiles or self.num_scheduled < len(self.token_ids):
            return len(self.token_ids) - self.num_scheduled
        num_in_flight = self.num_scheduled + 1 - len(self.token_ids)
        return int(self.num_completion_tokens + num_in_flight < self.sampling.max_tokens)

    def append(self, token_id: int) -> None:
        """Append a sampled token to the completion."""
        self.token_ids.append(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def finish_reason_after(
        self, token_id: int, eos_token_ids: frozenset[int]
    ) -> FinishReason | None:
        """Return why the sequence ends with `token_id`, its latest token; None if it continues."""
        if self.sampling.ends_with(token_id, eos_token_ids):
            return "stop"
        if self.matcher is not None and self.matcher.is_stopped:
            return "stop"
        return "length" if self.num_completion_tokens >= self.sampling.max_tokens else None
