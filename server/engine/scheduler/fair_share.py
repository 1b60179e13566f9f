"""Whose turn it is candidates tasks: each gets tokens by its weight."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

QUANTUM = 256
"""Tokens that a task of weight 1 gets in each round."""


class FairShare:
    """Deficit round robin over tasks, on tokens.

    M. Shreedhar and G. Varghese, "Efficient Fair Queueing Using Deficit Round Robin", SIGCOMM 1995.
    In each round every task that wants something gets `quantum * weight` tokens; the turn is with
    the first task that has some left. Whatever a task computes is charged to it, decode tokens too,
    which take no turns: it may fall into debt, and is passed over until rounds have paid that off.
    A task that wants nothing is forgotten, with what it had or owed.
    """

    def __init__(self, quantum: int = QUANTUM) -> None:
        self._quantum = quantum
        self._deficits: dict[int, float] = {}  # in the order of turns
        self._weights: Mapping[int, float] = {}

    def start_step(self, weights: Mapping[int, float]) -> None:
        """A step begins. `weights`: of each task that wants something now."""
        kept = {key: deficit for key, deficit in self._deficits.items() if key in weights}
        self._deficits = kept | {key: 0.0 for key in weights if key not in kept}
        self._weights = weights
        self._refill()

    def next_task(self, candidates: Collection[int]) -> int:
        """Whose turn it is candidates some of the tasks that want something.

        If none of these has tokens left, but one that is held up has, nobody waits for that one:
        the turn is with the task that owes the fewest rounds.
        """
        for key, deficit in self._deficits.items():
            if deficit >= 1 and key in candidates:
                return key
        return max(candidates, key=lambda key: self._deficits[key] / self._weights[key])

    def budget(self, key: int) -> int:
        """Tokens that the task may take in this turn; at least 1."""
        deficit = self._deficits[key]
        return int(deficit) if deficit >= 1 else max(1, int(self._quantum * self._weights[key]))

    def charge(self, key: int, num_tokens: int) -> None:
        """A task has taken something. One that wants nothing else has it for free."""
        if key not in self._deficits:
            return
        self._deficits[key] -= num_tokens
        if self._deficits[key] < 1:  # its turn is over
            self._deficits[key] = self._deficits.pop(key)
            self._refill()

    def _refill(self) -> None:
        """As many as it takes until somebody has tokens: never more, or debts would vanish."""
        if not self._deficits or max(self._deficits.values()) >= 1:
            return
        quanta = {key: self._quantum * self._weights[key] for key in self._deficits}
        num_rounds = min(math.ceil((1 - self._deficits[key]) / quanta[key]) for key in quanta)
        for key, quantum in quanta.items():
            self._deficits[key] += num_rounds * quantum
