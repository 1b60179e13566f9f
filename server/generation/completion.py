"""One admitted request on its way out: tokens to text, stop strings, times."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from prefix_store.digest import Digest
from server.engine.ipc.stream import TokenStream
from server.engine.params import Delta, FinishReason, Logprobs, SamplingParams
from server.errors import ServerError
from server.text.detokenizer import Detokenizer, StopStrings


@dataclass(frozen=True, slots=True)
class Target:
    """The version that a request was admitted on. No task: the base model."""

    task: str | None
    version: int | None
    digest: Digest | None
    num_prefix_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of a completion."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    """Set on the last piece."""
    logprobs: Logprobs | None = None
    """Log-probabilities of `token_ids`, if requested."""


class RankedText(NamedTuple):
    """One of the texts of a ranking."""

    text: str
    logprob: float
    """Sum over its tokens."""
    num_tokens: int
    probability: float
    """Relative to the other texts: all add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionDetails:
    """What a completion needs to know about its request."""

    target: Target
    prompt_token_ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    """As asked for: 0 where only the prompt is scored, for which the engine samples one token."""
    detokenizer: Detokenizer
    stops: StopStrings
    arrived_s: float
    """When the request arrived, by `time.monotonic`."""
    on_end: Callable[[Completion], None]


class Completion:
    """An admitted request. Iterate over it for the pieces; then its attributes hold the result.

    Closing it, or leaving the iteration early, cancels the sequence in the engine.
    """

    def __init__(self, stream: TokenStream, details: CompletionDetails) -> None:
        self.target = details.target
        self.prompt_token_ids = details.prompt_token_ids
        self.num_cached_tokens = 0
        self.num_completion_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: ServerError | None = None
        self.ranking: list[RankedText] | None = None
        """All texts, where the answer is one of given texts; set with the last piece."""
        self.submitted_s = time.monotonic()
        self.first_token_s: float | None = None
        self.ended_s: float | None = None
        self._details = details
        self._stream = stream
        self._prompt_logprobs: list[Logprobs] = []

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def prompt_logprobs(self) -> Logprobs | None:
        """Log-probabilities of the prompt's tokens from the second on, if requested. Complete once
        the first token has arrived."""
        return joined_scores(self._prompt_logprobs)

    @property
    def queue_s(self) -> float:
        """Time from arrival to submission: resolving, tokenising, admission."""
        return self.submitted_s - self._details.arrived_s

    @property
    def time_to_first_token_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self._details.arrived_s

    @property
    def total_s(self) -> float:
        return (self.ended_s or time.monotonic()) - self._details.arrived_s

    @property
    def outcome(self) -> str:
        """`stop`, `length`, the code of an error, or `cancelled` when the reader left."""
        if self.error is not None:
            return self.error.code
        return self.finish_reason or "cancelled"

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield pieces of text as they arrive. Raises `ServerError` when the engine fails."""
        try:
            async for delta in self._stream:
                piece = self._take(delta)
                yield piece
                if piece.finish_reason is not None:
                    break
        except ServerError as exc:
            self.error = exc
            raise
        finally:
            self.close()

    async def collect(self) -> Piece:
        """Wait for the whole completion, as one piece. Raises `ServerError`."""
        return joined([piece async for piece in self])

    def close(self) -> None:
        """Cancel the sequence if it still runs, and report the end once. Idempotent."""
        self._stream.close()
        if self.ended_s is None:
            self.ended_s = time.monotonic()
            self._details.on_end(self)

    def _take(self, delta: Delta) -> Piece:
        stops = self._details.stops
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs.append(delta.prompt_logprobs)
        if not delta.token_ids and delta.finish_reason is None:
            return Piece("", [], None)
        if self.first_token_s is None and delta.token_ids:
            self.first_token_s = time.monotonic()
        self.num_cached_tokens = delta.num_cached_tokens
        if self._details.max_tokens == 0:
            self.finish_reason = "length"
            return Piece("", [], "length")
        token_ids: list[int] = []
        text = ""
        for token_id in delta.token_ids:
            token_ids.append(token_id)
            text += self._text_of(token_id)
            if stops.matched:
                break
        if delta.finish_reason is not None:
            text += stops.push(self._details.detokenizer.flush()) + stops.flush()
        self.finish_reason = "stop" if stops.matched else delta.finish_reason
        return Piece(text, token_ids, self.finish_reason, delta.logprobs)

    def _text_of(self, token_id: int) -> str:
        """The text that one more token adds, apart from what may be the start of a stop string."""
        details = self._details
        self.num_completion_tokens += 1
        if token_id in details.sampling.stop_token_ids:
            return ""
        text = details.detokenizer.push(token_id)
        may_stop = self.num_completion_tokens > details.sampling.min_tokens
        return details.stops.push(text) if may_stop else text


def joined(pieces: Sequence[Piece]) -> Piece:
    """Join the pieces of a completion."""
    return Piece(
        text="".join(piece.text for piece in pieces),
        token_ids=[token_id for piece in pieces for token_id in piece.token_ids],
        finish_reason=pieces[-1].finish_reason if pieces else None,
        logprobs=joined_scores([piece.logprobs for piece in pieces if piece.logprobs]),
    )


def joined_scores(parts: Sequence[Logprobs]) -> Logprobs | None:
    """Join the log-probabilities of consecutive tokens. None for no parts."""
    if not parts:
        return None
    columns = (chain.from_iterable(column) for column in zip(*parts, strict=True))
    return Logprobs(*map(list, columns))
