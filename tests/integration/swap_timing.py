"""Whether answers came from the versions that were in force."""

from __future__ import annotations

from dataclasses import dataclass

TARGET_S = 2.0
"""Seconds after which a swap on one server must be in force on the other."""


@dataclass(frozen=True)
class Answer:
    server: int
    sent_s: float
    answered_s: float
    version: int


@dataclass(frozen=True)
class Swap:
    server: int
    began_s: float
    ended_s: float
    version: int


def num_late(answers: list[Answer], swaps: list[Swap]) -> int:
    """Answers by a version that another had already replaced when the request was sent: at once on
    the server that made the swap, within the target on the other; or that was not asked for yet."""
    replaced = zip(swaps, [*swaps[1:], None], strict=True)
    in_force = [
        (swap, [next_ and next_.ended_s + (0 if next_.server == server else TARGET_S)
                for server in (0, 1)])
        for swap, next_ in replaced
    ]  # fmt: skip
    return sum(
        not any(
            swap.version == one.version
            and swap.began_s <= one.answered_s
            and (until[one.server] is None or one.sent_s <= until[one.server])
            for swap, until in in_force
        )
        for one in answers
    )
