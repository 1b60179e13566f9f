"""Requests for text, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pydantic import ConfigDict

from foreword_client.types.base import Answer


class GenerateOptions(TypedDict, total=False):
    """Options of a request. What is left out, or None, comes from the task's profile."""

    messages: Sequence[Mapping[str, str]] | None
    """A chat instead of a prompt: `{"role": ..., "content": ...}`."""
    fields: Mapping[str, str] | None
    """For the named fields of the task's template."""
    max_tokens: int | None
    temperature: float | None
    """0 is greedy."""
    top_p: float | None
    top_k: int | None
    """0: all tokens."""
    min_p: float | None
    """Drops tokens below this share of the most likely token's probability."""
    seed: int | None
    stop: str | list[str] | None
    stop_token_ids: Sequence[int] | None
    """Tokens that end the text and are not part of it."""
    ignore_eos: bool | None
    """Generate `max_tokens` tokens, past the end that the model gives."""
    min_tokens: int | None
    """Number of tokens before which the text does not end."""
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    """1: no penalty."""
    logit_bias: Mapping[str, float] | None
    """By token id."""
    logprobs: int | None
    """Log-probabilities of the tokens, and of this many most likely ones at each position."""
    prompt_logprobs: int | None
    """Like `logprobs`, for the prompt's tokens."""
    response_format: Mapping[str, Any] | None
    """The answer is JSON: `{"type": "json_object"}`, or JSON of a schema: `{"type": "json_schema",
    "json_schema": {"name": ..., "schema": {...}}}`. `{"type": "text"}` allows any text, whatever
    the task's profile says."""
    regex: str | None
    """The answer matches it from start to end."""
    choice: Sequence[str] | None
    """The answer is generated, and is one of these."""
    rank: Mapping[str, Any] | None
    """Nothing is generated: the answer is the most likely of `{"texts": [...], "by": "sum"}`, by
    `sum` or `mean` of the log-probabilities of a text's tokens. See `Generation.ranking`."""
    priority: int | None
    """Lower runs earlier, among the requests of one task. Default: 0."""
    traffic_key: str | None
    """Where versions share the traffic, requests with the same key get the same version."""
    return_token_ids: bool | None


class Usage(Answer):
    """Token counts of one request."""

    prefix_tokens: int
    prompt_tokens: int
    cached_tokens: int = 0
    """Prompt tokens served from the prompt cache."""
    completion_tokens: int


class Timings(Answer):
    """Milliseconds since the request arrived at the server."""

    queue_ms: float
    first_token_ms: float | None = None
    total_ms: float


class LikelyToken(Answer):
    """A candidate token."""

    token_id: int
    token: str
    logprob: float


class ScoredToken(Answer):
    """A token, and the most likely tokens at its position."""

    token_id: int
    token: str
    logprob: float | None = None
    """None for a prompt's first token."""
    top: list[LikelyToken]


class RankedText(Answer):
    """One of the texts of a ranking."""

    text: str
    logprob: float
    """Log-probability after the prompt: sum over its tokens."""
    num_tokens: int
    probability: float
    """Relative to the other texts: all add up to 1."""


class Generation(Answer):
    """A completion, and the version of the task that made it."""

    id: str
    task: str | None = None
    version: int | None = None
    digest: str | None = None
    text: str
    token_ids: list[int] | None = None
    """Present with `return_token_ids`."""
    logprobs: list[ScoredToken] | None = None
    prompt_logprobs: list[ScoredToken] | None = None
    finish_reason: str
    """`stop` or `length`."""
    ranking: list[RankedText] | None = None
    """With `rank`: its texts in their order, scored."""
    usage: Usage
    timings: Timings


class Token(Answer):
    """The next part of a streamed completion: usually one token, sometimes several."""

    text: str
    token_ids: list[int] | None = None
    logprobs: list[ScoredToken] | None = None


class Rank(Answer):
    """Texts of which the most likely is the answer."""

    texts: list[str]
    by: str = "sum"
    """`sum` or `mean` of the log-probabilities of a text's tokens."""


class Defaults(Answer):
    """A task's values for what a request leaves out. Keeps fields of newer servers."""

    model_config = ConfigDict(extra="allow")

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    rank: Rank | None = None
