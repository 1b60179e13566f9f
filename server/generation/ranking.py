"""The most likely of given texts as the answer: all are scored after the same prompt.

The first text runs alone and leaves the prompt in the prompt cache, where there is one. The others
then run side by side, each from the token where it differs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefix_store.sampling import Rank
from server.engine.ipc.stream import TokenStream
from server.engine.params import Delta, Logprobs
from server.errors import InvalidRequest
from server.generation.completion import (
    Completion,
    CompletionDetails,
    Piece,
    RankedText,
    joined_scores,
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Texts after one prompt, each with the token ids of prompt and text as one."""

    rank: Rank
    token_ids: list[list[int]]
    num_shared: int
    """Number of leading tokens that the prompt shares with every candidate. The rest is scored."""

    @classmethod
    def of(cls, rank: Rank, token_ids: list[list[int]], prompt: list[int]) -> Candidates:
        """Raises `InvalidRequest` where a text has nothing to score, or nothing before it.

        A text may change the last tokens of the prompt. They are then scored with every text.
        """
        num_shared = min(_num_shared(prompt, whole) for whole in token_ids)
        if num_shared == 0 or any(len(whole) == num_shared for whole in token_ids):
            raise InvalidRequest(
                "a text of `rank` leaves no token of the prompt as it is, or adds no token to it"
            )
        return cls(rank, token_ids, num_shared)


def _num_shared(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class CandidateStream(TokenStream):
    """Runs all candidates. Its only delta says that all are scored."""

    def __init__(self, candidates: Candidates, submit: Callable[[list[int]], TokenStream]) -> None:
        super().__init__(cancel=self._close_all)
        self._candidates = candidates
        self._submit = submit
        self._streams: list[TokenStream] = []
        self._num_cached = 0
        self.scores: list[Logprobs] = []
        """Log-probabilities of each candidate's tokens after the shared ones."""

    async def __anext__(self) -> Delta:
        if self.finish_reason is not None:
            raise StopAsyncIteration
        first, *others = self._candidates.token_ids
        await self._score(self._start(first))
        num_cached = self._num_cached
        for stream in [self._start(token_ids) for token_ids in others]:
            await self._score(stream)
        self.finish_reason, self._cancel = "stop", None
        return Delta(0, [], "stop", num_cached)

    def _start(self, token_ids: list[int]) -> TokenStream:
        self._streams.append(self._submit(token_ids))
        return self._streams[-1]

    async def _score(self, stream: TokenStream) -> None:
        parts: list[Logprobs] = []
        async for delta in stream:
            parts += [delta.prompt_logprobs] if delta.prompt_logprobs is not None else []
            self._num_cached = delta.num_cached_tokens
        scores = joined_scores(parts)
        assert scores is not None, "every candidate has a token of its own"
        self.scores.append(scores)

    def _close_all(self) -> None:
        for stream in self._streams:
            stream.close()


class RankedCompletion(Completion):
    """A completion that is chosen among candidates, not generated."""

    def __init__(
        self, stream: CandidateStream, candidates: Candidates, details: CompletionDetails
    ) -> None:
        super().__init__(stream, details)
        self._scored = stream
        self._candidates = candidates

    def _take(self, delta: Delta) -> Piece:
        candidates, scores = self._candidates, self._scored.scores
        self.first_token_s = time.monotonic()
        self.num_cached_tokens = delta.num_cached_tokens
        self.finish_reason = "stop"
        self.ranking = ranked(candidates.rank, scores)
        probabilities = [text.probability for text in self.ranking]
        best = probabilities.index(max(probabilities))
        token_ids = candidates.token_ids[best][candidates.num_shared :]
        self.num_completion_tokens = len(token_ids)
        return Piece(candidates.rank.texts[best], token_ids, "stop", scores[best])


def ranked(rank: Rank, scores: Sequence[Logprobs]) -> list[RankedText]:
    """The texts in their order, with probabilities that add up to 1."""
    sums = [math.fsum(each.logprobs) for each in scores]
    lengths = [len(each.logprobs) for each in scores]
    values = sums if rank.by == "sum" else [s / n for s, n in zip(sums, lengths, strict=True)]
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    total = math.fsum(weights)
    columns = zip(rank.texts, sums, lengths, (weight / total for weight in weights), strict=True)
    return [RankedText(*row) for row in columns]
