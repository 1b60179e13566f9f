"""What is asked for, the same for every system that is measured."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 100, 40_000
"""Ordinary tokens in every vocabulary of the size of SmolLM2's or larger."""

SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "kind": {"enum": ["cat", "dog", "bird"]},
            "age": {"type": "integer"},
        },
        "required": ["name", "kind", "age"],
        "additionalProperties": False,
    },
    "minItems": 100_000,
}
"""JSON that is longer than any completion: all are of the same length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`num_requests` completions of `num_new_tokens` each.

    A closed loop keeps `concurrency` requests running: one ends, the next begins. An open loop
    sends `rate` requests a second at random times (Poisson), however many are running.
    """

    num_requests: int
    concurrency: int = 1
    rate: float | None = None
    prompt_lengths: tuple[int, ...] = (32,)
    """Each prompt has one of these, drawn at random."""
    num_new_tokens: int = 64
    json_share: float = 0.0
    """Of the requests: so many want JSON of `SCHEMA`, evenly spread."""
    seed: int = 0
    """Another seed, other prompts: no server finds prompts of an earlier run in a cache."""

    def prompt(self, request: int) -> list[int]:
        """Random token ids, another prompt for each request."""
        length = random.Random(f"length/{self.seed}/{request}").choice(self.prompt_lengths)
        return random_token_ids(length, f"{self.seed}/{request}")

    def wants_json(self, request: int) -> bool:
        return int((request + 1) * self.json_share) > int(request * self.json_share)

    def arrivals_s(self) -> list[float]:
        """When an open loop sends its requests, from the start."""
        assert self.rate is not None
        rng = random.Random(f"arrivals/{self.seed}")
        return list(accumulate(rng.expovariate(self.rate) for _ in range(self.num_requests)))


def random_token_ids(num_tokens: int, seed: str) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(num_tokens)]
