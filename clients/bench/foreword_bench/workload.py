"""What is asked for, the same for every system that is measured."""

from __future__ import annotations

import random
from dataclasses import dataclass

_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 100, 40_000
"""Ordinary tokens in every vocabulary of the size of SmolLM2's or larger."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`num_requests` completions of fixed length, `concurrency` at a time."""

    concurrency: int
    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int
    seed: int = 0

    def prompt(self, request: int) -> list[int]:
        """Random token ids, another prompt for each request."""
        return random_token_ids(self.num_prompt_tokens, f"{self.seed}/{request}")


def random_token_ids(num_tokens: int, seed: str) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(num_tokens)]
