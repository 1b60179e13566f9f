"""Parameters of a request and its output tokens: plain values that the API process, the engine's
messages and the step loop share."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are sampled. The defaults are the server's."""

    max_tokens: int
    temperature: float = 0.0
    """0: greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    min_p: float = 0.0
    """Share of the most likely token's probability below which tokens are dropped."""
    seed: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the text like EOS, with `ignore_eos` too."""
    min_tokens: int = 0
    """Number of tokens before which the text may not end."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Penalties for tokens of the completion so far, as OpenAI defines both."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens of prompt and completion; above 1 makes them less likely."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits."""
    logprobs: int | None = None
    """Number of likeliest tokens to return with the completion's log-probabilities; None: no
    log-probabilities."""
    prompt_logprobs: int | None = None
    """Like `logprobs`, for the prompt's tokens from index `first_scored` on."""
    first_scored: int = 1
    """Index of the first prompt token to score; at least 1, as nothing comes before token 0."""
    grammar: str | None = None
    """Grammar of the completion, as `server.engine.grammar` writes it."""

    def ends_with(self, token_id: int, eos_token_ids: Collection[int]) -> bool:
        """Whether this token ends the completion."""
        is_eos = token_id in eos_token_ids and not self.ignore_eos
        return is_eos or token_id in self.stop_token_ids


BASE_MODEL = 0
COMPILES = 1
GOLDEN = 2
"""Numbers that belong to no task: requests without a prefix, prefixes being computed or verified,
and golden prompts."""

NO_CLIENT = 0
"""The client of requests without an API key, and of the server's own."""


class QueueKey(NamedTuple):
    """Key of a queue of the scheduler."""

    task: int
    client: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingParams:
    """How a request shares the engine with others.

    Requests with the same `queue` are of one task, and those with the same `client` were sent with
    one API key. The engine does not know which.
    """

    queue: int = BASE_MODEL
    client: int = NO_CLIENT
    weight: float = 1.0
    """Tokens for this task per token of a task of weight 1, while both have work waiting."""
    max_concurrency: int | None = None
    """Maximum number of sequences of this task that run at once. None: no limit."""
    priority: int = 0
    """Lower runs earlier, within the requests of one client of the task."""

    @property
    def key(self) -> QueueKey:
        """Key of the queue of the request."""
        return QueueKey(self.queue, self.client)


DEFAULT_SCHEDULING = SchedulingParams()


class Logprobs(NamedTuple):
    """Log-probabilities of consecutive tokens by the model's own distribution: before temperature,
    penalties and biases."""

    logprobs: list[float]
    top_ids: list[list[int]]
    """For each position the ids of the most likely tokens, most likely first."""
    top_logprobs: list[list[float]]


class Delta(NamedTuple):
    """New output of one request. `token_ids` is empty where only `prompt_logprobs` are new."""

    request_id: int
    token_ids: list[int]
    finish_reason: FinishReason | None
    num_cached_tokens: int = 0
    """Number of prompt tokens served from the prompt cache."""
    logprobs: Logprobs | None = None
    """Log-probabilities of `token_ids`, if requested."""
    prompt_logprobs: Logprobs | None = None
    """Log-probabilities of the next tokens of the prompt."""
