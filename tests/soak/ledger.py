"""Records of a soak: operations with their outcomes and times, answers, violations."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

MAX_LISTED = 40
"""Violations that are kept in words. All are counted."""
TOLERANCE = 0.02
"""Largest difference of a log-probability between batches, in float32."""
OUTAGE_ENDS_AFTER_S = 3.0
"""Time after an engine is ready again in which an answer may still report the outage."""


class Violation(Exception):
    """The server broke a promise."""


@dataclass(frozen=True, slots=True)
class Target:
    """The version that answered, by the headers of its answer. All are None for the base model."""

    task: str | None
    version: int | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to an `Ask`, in a form that is the same whole and streamed."""

    exact: str
    """JSON of texts, token ids and finish reasons."""
    scores: tuple[float, ...] = ()
    """Log-probabilities; empty where the answer was streamed."""

    def agrees(self, other: Answer) -> bool:
        """Whether two answers are equal, their scores within `TOLERANCE`."""
        if self.exact != other.exact:
            return False
        if not (self.scores and other.scores):
            return True
        pairs = zip(self.scores, other.scores, strict=False)
        is_near = all(math.isclose(a, b, abs_tol=TOLERANCE) for a, b in pairs)
        return is_near and len(self.scores) == len(other.scores)

    def begins_with(self, token_ids: list[int]) -> bool:
        """Whether the answer's token ids begin with those that a client saw before it left."""
        whole: list[int] = json.loads(self.exact)["token_ids"]
        return whole[: len(token_ids)] == token_ids


class Outages:
    """The times in which the engine was killed, hung, or not ready again."""

    def __init__(self) -> None:
        self._begun_s: list[float] = []
        self._ended_s: list[float] = []

    def begin(self) -> None:
        self._begun_s.append(time.monotonic())

    def end(self) -> None:
        self._ended_s.append(time.monotonic() + OUTAGE_ENDS_AFTER_S)

    def overlap(self, begin_s: float, end_s: float) -> bool:
        """Whether the engine was unavailable at some time between these two."""
        ended_s = [*self._ended_s, math.inf]
        return any(b < end_s and begin_s < e for b, e in zip(self._begun_s, ended_s, strict=False))


@dataclass(slots=True)
class Ledger:
    """Everything that operations report."""

    outages: Outages = field(default_factory=Outages)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    durations_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[tuple[Target, str], Answer] = field(default_factory=dict)
    """The first answer of each version to each ask, by the ask's name."""
    cut_off: list[tuple[Target, str, list[int]]] = field(default_factory=list)
    """Tokens that a client had seen of an answer when it left."""
    num_answers: int = 0
    num_violations: int = 0
    violations: list[str] = field(default_factory=list)

    def count(self, operation: str, outcome: str, duration_s: float) -> None:
        self.outcomes[operation, outcome] += 1
        self.durations_s[operation].append(duration_s)

    def violate(self, text: str) -> None:
        """Record a violation."""
        self.num_violations += 1
        if len(self.violations) < MAX_LISTED:
            self.violations.append(text)

    def answered(self, target: Target, ask: str, answer: Answer) -> None:
        """Record an answer. Raises `Violation` if the same version has answered otherwise."""
        self.num_answers += 1
        first = self.answers.setdefault((target, ask), answer)
        if not answer.agrees(first):
            raise Violation(f"{ask} to {target}: {answer} differs from an earlier {first}")

    @property
    def num_operations(self) -> int:
        return self.outcomes.total()
