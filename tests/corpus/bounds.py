"""What a request may cost: every one of the corpus is held to this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.corpus.probe import Cost, State


@dataclass(frozen=True)
class Bound:
    """Limits of one request, in units of the strict parsing of an ordinary body of 64 KiB."""

    turn: float = 15.0
    """The longest turn of the event loop."""
    turns: float = 40.0
    """All turns of the event loop."""
    threads: float = 250.0
    """All work on threads."""


ANY = Bound()


def over(cost: Cost, bound: Bound, unit_s: float) -> str:
    """What is over its bound, in units; empty if nothing is."""
    found = {
        f"longest turn ({cost.longest_turn})": (cost.longest_turn_s / unit_s, bound.turn),
        "turns": (cost.turns_s / unit_s, bound.turns),
        "threads": (cost.threads_s / unit_s, bound.threads),
    }
    return ", ".join(
        f"{name} {units:.0f} units instead of {most:g}"
        for name, (units, most) in found.items()
        if units > most
    )


def expensive(state: State, bound: Bound = ANY) -> Iterator[tuple[int, str]]:
    """Yield the clients whose requests cost more than the bound, and what was over it."""
    for client, cost in state.costs.items():
        if said := over(cost, bound, state.unit_s):
            yield client, said
