"""The likeliest of some texts as the answer: all are scored behind the same prompt.

The first one is run alone and leaves the prompt in the prompt cache, where there is one; the others
run side by side, each from where it differs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefix_store.sampling import RankBy
from server.engine.ipc.stream import TokenStream
from server.engine.params import Delta, Logprobs
from server.errors import InvalidRequest
from server.generation.completion import (
    ChoiceScore,
    Completion,
    CompletionDetails,
    Piece,
    joined_scores,
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Texts behind one prompt, with the token ids of prompt and text as one."""

    texts: tuple[str, ...]
    token_ids: list[list[int]]
    num_shared: int
    """Leading tokens that the prompt has in common with all of them; what follows is scored."""
    by: RankBy

    @classmethod
    def of(
        cls, texts: tuple[str, ...], token_ids: list[list[int]], prompt: list[int], by: RankBy
    ) -> Candidates:
        """Raises `InvalidRequest` where there is nothing to score, or nothing to score it behind.

        A text may change the last tokens of the prompt: these are scored with all texts then.
        """
        num_shared = min(_num_shared(prompt, whole) for whole in token_ids)
        if num_shared == 0 or any(len(whole) == num_shared for whole in token_ids):
            raise InvalidRequest("a choice leaves no token of the prompt, or adds none to it")
        return cls(texts, token_ids, num_shared, by)


def _num_shared(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class CandidateStream(TokenStream):
    """Runs all candidates. Its one delta says that they are scored."""

    def __init__(self, candidates: Candidates, submit: Callable[[list[int]], TokenStream]) -> None:
        super().__init__(cancel=self._close_all)
        self._candidates = candidates
        self._submit = submit
        self._streams: list[TokenStream] = []
        self._num_cached = 0
        self.scores: list[Logprobs] = []
        """Of each candidate's tokens behind those that are shared."""

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
            self._num_cached = delta.num_reused
        scores = joined_scores(parts)
        assert scores is not None, "every candidate has a token of its own"
        self.scores.append(scores)

    def _close_all(self) -> None:
        for stream in self._streams:
            stream.close()


class Ranking(Completion):
    """A completion that is chosen, not generated."""

    def __init__(
        self, stream: CandidateStream, candidates: Candidates, details: CompletionDetails
    ) -> None:
        super().__init__(stream, details)
        self._scored = stream
        self._candidates = candidates

    def _take(self, delta: Delta) -> Piece:
        candidates, scores = self._candidates, self._scored.scores
        self.first_token_s = time.monotonic()
        self.num_cached_tokens = delta.num_reused
        self.finish_reason = "stop"
        self.choice_scores = ranked(candidates.texts, scores, candidates.by)
        probabilities = [choice.probability for choice in self.choice_scores]
        best = probabilities.index(max(probabilities))
        token_ids = candidates.token_ids[best][candidates.num_shared :]
        self.num_completion_tokens = len(token_ids)
        return Piece(candidates.texts[best], token_ids, "stop", scores[best])


def ranked(texts: Sequence[str], scores: Sequence[Logprobs], by: RankBy) -> list[ChoiceScore]:
    """Probabilities add up to 1; the highest is the best."""
    sums = [math.fsum(each.logprobs) for each in scores]
    lengths = [len(each.logprobs) for each in scores]
    values = sums if by == "sum" else [s / n for s, n in zip(sums, lengths, strict=True)]
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    total = math.fsum(weights)
    columns = zip(texts, sums, lengths, (weight / total for weight in weights), strict=True)
    return [ChoiceScore(*row) for row in columns]
