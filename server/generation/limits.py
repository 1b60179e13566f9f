"""Limits of a request: what fits into the model's context, and into an answer."""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.ipc.messages import EngineInfo
from server.errors import InvalidRequest, PromptTooLong
from server.text.tokenizer import Tokenizer

MAX_SCORES = 1 << 18
"""Log-probabilities in one answer, those of other likely tokens included: each takes about 60 bytes
of the answer, and 300 of memory while it is written. Enough for a prompt of 8192 tokens with 20
other likely ones each."""


def check_size(
    texts: Sequence[str], tokenizer: Tokenizer, num_prefix_tokens: int, info: EngineInfo
) -> None:
    """Refuse texts that cannot fit, before joining or tokenising them. Raises `PromptTooLong`."""
    num_tokens = tokenizer.least_tokens(texts)
    if num_prefix_tokens + num_tokens > info.max_model_len:
        raise PromptTooLong(
            prefix_tokens=num_prefix_tokens,
            prompt_tokens=num_tokens,
            max_tokens=None,
            limit=info.max_model_len,
        )


def check_room(
    num_prefix_tokens: int, num_prompt_tokens: int, num_tokens: int, max_model_len: int
) -> None:
    """Raises `PromptTooLong` unless prefix, prompt and `num_tokens` new tokens fit."""
    if num_prefix_tokens + num_prompt_tokens + num_tokens > max_model_len:
        raise PromptTooLong(
            prefix_tokens=num_prefix_tokens,
            prompt_tokens=num_prompt_tokens,
            max_tokens=num_tokens,
            limit=max_model_len,
        )


def check_scores(num_scores: int) -> None:
    """Refuse an answer with too many log-probabilities. Raises `InvalidRequest`."""
    if num_scores > MAX_SCORES:
        raise InvalidRequest(
            f"the answer may have {num_scores} log-probabilities, {MAX_SCORES} are allowed: ask "
            "for fewer at each token, or send fewer or shorter prompts"
        )
