"""Workloads, identical for every system that is measured."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

_FIRST_TOKEN_ID, _LAST_TOKEN_ID = 100, 40_000
"""Regular tokens in any vocabulary at least as large as SmolLM2's."""

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
"""JSON longer than any completion, so that all completions have the same length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`num_requests` completions of `num_new_tokens` each.

    A closed loop keeps `concurrency` requests running. An open loop sends `rate` requests per
    second at random times (Poisson), however many are running.
    """

    num_requests: int
    concurrency: int = 1
    rate: float | None = None
    prompt_lengths: tuple[int, ...] = (32,)
    """Lengths of prompts, in tokens, drawn at random."""
    num_new_tokens: int = 64
    json_share: float = 0.0
    """Share of the requests that want JSON of `SCHEMA`, evenly spread."""
    seed: int = 0
    """With a new seed all prompts are new, so that none is cached from an earlier run."""

    def prompt(self, request: int) -> list[int]:
        """Return random token ids, which differ between requests."""
        length = random.Random(f"length/{self.seed}/{request}").choice(self.prompt_lengths)
        return random_token_ids(length, f"{self.seed}/{request}")

    def wants_json(self, request: int) -> bool:
        return int((request + 1) * self.json_share) > int(request * self.json_share)

    def arrivals_s(self) -> list[float]:
        """Return when an open loop sends its requests, in seconds from the start."""
        assert self.rate is not None
        rng = random.Random(f"arrivals/{self.seed}")
        return list(accumulate(rng.expovariate(self.rate) for _ in range(self.num_requests)))


def random_token_ids(num_tokens: int, seed: str) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(_FIRST_TOKEN_ID, _LAST_TOKEN_ID) for _ in range(num_tokens)]
