"""What a request asks of the engine, and what it gets: plain values that the step loop, the wire
and the API process share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one request's tokens are chosen. `temperature` 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens."""
    seed: int = 0
    ignore_eos: bool = False


BASE_MODEL = 0
COMPILES = 1
"""Queues without a task: requests without a prefix, and prefixes that are being computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Whose request it is, and how it shares the engine with others.

    Requests with the same `queue` belong together; the engine does not know to which task.
    """

    queue: int = BASE_MODEL
    weight: float = 1.0
    """Tokens this queue gets for each token of a queue of weight 1, where both want more."""
    max_concurrency: int | None = None
    """Sequences of this queue that run at once."""
    priority: int = 0
    """Lower goes earlier, within the queue."""


ALONE = Share()


class Delta(NamedTuple):
    """New tokens of one request."""

    request_id: int
    token_ids: list[int]
    finish_reason: FinishReason | None
    num_reused: int = 0
    """Tokens of its prompt that were found computed."""
