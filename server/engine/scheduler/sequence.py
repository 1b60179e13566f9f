"""One prompt on its way to a completion. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from prefix_store.digest import Digest
from server.engine.grammar import Matcher
from server.engine.params import FinishReason, SamplingParams, SchedulingParams


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
    sampling: SamplingParams
    scheduling: SchedulingParams = field(default_factory=SchedulingParams)
    compiles: bool = False
    """Runs only to leave its own KV behind: text or a soft prompt on its way to a prefix."""
    verifies: bool = False
    """Runs only to see what the model makes of it, on pages that nobody else reads."""
    matcher: Matcher | None = None
    """How far the completion has come in its grammar, where it has one."""
    status: SequenceStatus = SequenceStatus.WAITING
    rank: tuple[int, int] = (0, 0)
    """Lower goes first, and is preempted last; given by the scheduler, for good."""
    num_prompt_tokens: int = field(init=False)
    num_computed: int = 0
    """Leading tokens whose keys and values lie in the pool."""
    num_scheduled: int = 0
    """Those, and what the steps in flight compute. May go one or two beyond the ids known."""
    pages: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    """What the prompt cache calls the first full pages, as far as it had to know."""
    num_hashed_pages: int = 0
    num_scored: int = 0
    """Leading tokens of the prompt after which the next one's log-probability was sent, or is not
    asked for."""
    num_reused: int | None = None
    """Prompt tokens that were found computed; None before it was first admitted."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.num_scored = self.sampling.first_scored - 1

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_slots(self) -> int:
        """Of the pool that it may come to take: the last token's keys are never computed."""
        return self.num_prompt_tokens + max(0, self.sampling.max_tokens - 1)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_unscheduled(self) -> int:
        """Tokens that a next step can take; a sampled token of unknown id counts until it is the
        last that the request may have."""
        if self.compiles or self.num_scheduled < len(self.token_ids):
            return len(self.token_ids) - self.num_scheduled
        num_in_flight = self.num_scheduled + 1 - len(self.token_ids)
        return int(self.num_completion_tokens + num_in_flight < self.sampling.max_tokens)

    def append(self, token_id: int) -> None:
        """The completion goes on."""
        self.token_ids.append(token_id)
        if self.matcher is not None:
            self.matcher.accept(token_id)

    def finish_reason_after(
        self, token_id: int, eos_token_ids: frozenset[int]
    ) -> FinishReason | None:
        """Why the sequence ends with this token, the latest of `token_ids`; None if it goes on."""
        if self.sampling.ends_with(token_id, eos_token_ids):
            return "stop"
        if self.matcher is not None and self.matcher.is_at_end:
            return "stop"
        return "length" if self.num_completion_tokens >= self.sampling.max_tokens else None
