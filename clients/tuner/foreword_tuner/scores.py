"""Scores of answers, with confidence intervals.

A score is computed from sums of per-example parts, so that the bootstrap draws examples without
scoring them again. BLEU is defined for a corpus and is not the mean over its sentences; its parts
are counts of n-grams.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

METRICS = ("exact_match", "accuracy", "f1", "bleu", "rougeL")
_NUM_DRAWS = 1000
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Score:
    """A score from 0 to 100, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a question, and its references."""

    answer: str
    references: tuple[str, ...]


def score(
    answered: Sequence[Answered], metrics: Sequence[str], *, seed: int = 0
) -> dict[str, Score]:
    """Compute metrics, all from the same bootstrap draws."""
    draws = np.random.default_rng(seed).integers(
        0, len(answered), (_NUM_DRAWS, len(answered)), dtype=np.int32
    )
    return {name: _score(*_PARTS[name](answered), draws) for name in metrics}


def _score(parts: Array, combine: Callable[[Array], float], draws: npt.NDArray[np.int32]) -> Score:
    """Bootstrap a score. `parts`: [examples, columns]; `combine` turns their sums into a score."""
    drawn = sorted(combine(parts[draw].sum(axis=0)) for draw in draws)
    low, high = (drawn[int(q * (len(drawn) - 1))] for q in (0.025, 0.975))
    return Score(combine(parts.sum(axis=0)), low, high)


def _mean(of: Callable[[Answered], float]) -> Callable[[Sequence[Answered]], _Parts]:
    def parts(answered: Sequence[Answered]) -> _Parts:
        return np.array([[of(one), 1.0] for one in answered]), lambda s: 100 * float(s[0] / s[1])

    return parts


_Parts = tuple[Array, Callable[[Array], float]]


def _exact(one: Answered) -> float:
    """Compare verbatim, apart from surrounding white space."""
    return float(any(one.answer.strip() == right.strip() for right in one.references))


def _accurate(one: Answered) -> float:
    """Compare as labels: only the first line, ignoring case."""
    first = one.answer.strip().partition("\n")[0].strip().lower()
    return float(any(first == right.strip().lower() for right in one.references))


def _f1(one: Answered) -> float:
    """Return the F1 of shared words as in SQuAD, for the best reference."""
    return max(_overlap(_words(one.answer), _words(right)) for right in one.references)


def _overlap(answer: list[str], right: list[str]) -> float:
    common = sum((Counter(answer) & Counter(right)).values())
    return 2 * common / (len(answer) + len(right)) if common else float(answer == right)


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _bleu(answered: Sequence[Answered]) -> _Parts:
    """Count n-grams with sacrebleu, and combine them with sacrebleu's score of their sums.

    With its effective order: n-grams longer than every answer are left out. Without, answers of
    less than four words have BLEU 0 however right they are; for others it is the same.
    """
    from sacrebleu.metrics.bleu import BLEU  # slow to import, and `--help` does not need it

    most = max(len(one.references) for one in answered)
    bleu = BLEU(effective_order=True)
    hypotheses = [one.answer.strip() for one in answered]
    references: list[list[Any]] = [  # sacrebleu takes None for a missing reference
        [one.references[i] if i < len(one.references) else None for one in answered]
        for i in range(most)
    ]
    rows = bleu._extract_corpus_statistics(hypotheses, references)

    def combine(sums: Array) -> float:
        return float(bleu._compute_score_from_stats([int(n) for n in sums]).score)

    return np.array(rows, dtype=np.float64), combine


def _rouge(answered: Sequence[Answered]) -> _Parts:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk

    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def of(one: Answered) -> float:
        return float(
            max(scorer.score(right, one.answer)["rougeL"].fmeasure for right in one.references)
        )

    return _mean(of)(answered)


_PARTS: dict[str, Callable[[Sequence[Answered]], _Parts]] = {
    "exact_match": _mean(_exact),
    "accuracy": _mean(_accurate),
    "f1": _mean(_f1),
    "bleu": _bleu,
    "rougeL": _rouge,
}
