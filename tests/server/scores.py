"""Log-probabilities of an engine without a model."""

from __future__ import annotations

from server.engine.params import Logprobs


def fake_scores(token_ids: list[int], num_top: int | None) -> Logprobs | None:
    """The token itself is the likeliest, then the one after it in the vocabulary, and so on."""
    if num_top is None:
        return None
    tops = [[(token_id + i) % 256 for i in range(num_top)] for token_id in token_ids]
    logprobs = [[-0.5 * (i + 1) for i in range(num_top)] for _ in token_ids]
    return Logprobs([-0.5 for _ in token_ids], tops, logprobs)
