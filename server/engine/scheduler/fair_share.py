"""Fair sharing of prefill tokens between queues, by weight."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

QUANTUM = 256
"""Tokens credited to a queue of weight 1 in each round."""


class FairShare(Generic[K]):
    """Deficit round robin over queues (one per client of a task), counted in tokens.

    Every round adds `quantum * weight` tokens to the credit of each queue with work. The first one
    that has credit runs next. All tokens that a queue computes are charged to it, including decode
    tokens, which are scheduled without turns. A queue can therefore be in debt; it is skipped until
    enough rounds have paid the debt. A queue without work loses its credit or debt.

    Source: M. Shreedhar and G. Varghese, "Efficient Fair Queueing Using Deficit Round Robin",
    SIGCOMM 1995.
    """

    def __init__(self, quantum: int = QUANTUM) -> None:
        self._quantum = quantum
        self._credits: dict[K, float] = {}  # in round-robin order
        self._weights: Mapping[K, float] = {}

    def start_step(self, weights: Mapping[K, float]) -> None:
        """Begin a step. `weights` has an entry for each queue that has work now."""
        kept = {key: credit for key, credit in self._credits.items() if key in weights}
        self._credits = kept | {key: 0.0 for key in weights if key not in kept}
        self._weights = weights
        self._refill()

    def next_queue(self, candidates: Collection[K]) -> K:
        """Return the next of the `candidates`, which are the queues that could run now.

        Queues that have credit but are not candidates are not waited for. If no candidate has
        credit, the one that will have some in the fewest rounds is next.
        """
        for key, credit in self._credits.items():
            if credit >= 1 and key in candidates:
                return key
        return max(candidates, key=lambda key: self._credits[key] / self._weights[key])

    def budget(self, key: K) -> int:
        """Return how many tokens the queue may compute in its turn; at least 1."""
        credit = self._credits[key]
        return int(credit) if credit >= 1 else max(1, int(self._quantum * self._weights[key]))

    def charge(self, key: K, num_tokens: int) -> None:
        """Charge `num_tokens` to a queue. A queue that has no other work is not charged."""
        if key not in self._credits:
            return
        self._credits[key] -= num_tokens
        if self._credits[key] < 1:  # its turn ends: move it to the back
            self._credits[key] = self._credits.pop(key)
            self._refill()

    def _refill(self) -> None:
        """Run rounds until a queue has credit. Not more, because each round reduces debts."""
        if not self._credits or max(self._credits.values()) >= 1:
            return
        quanta = {key: self._quantum * self._weights[key] for key in self._credits}
        num_rounds = min(math.ceil((1 - self._credits[key]) / quanta[key]) for key in quanta)
        for key, quantum in quanta.items():
            self._credits[key] += num_rounds * quantum
