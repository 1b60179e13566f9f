"""How good answers are, and how sure that is.

Scores are computed from parts of every example, so that an interval needs no scoring again: a
bootstrap draws examples, and a score of the whole comes from the sums of what was drawn. BLEU is of
a corpus and not the mean of its sentences; its parts are counts of n-grams.
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
    """From 0 to 100, with what 95 % of the bootstrap's draws lie between."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Answered:
    """One question's answer, and all that would have been right."""

    answer: str
    references: tuple[str, ...]


def score(
    answered: Sequence[Answered], metrics: Sequence[str], *, seed: int = 0
) -> dict[str, Score]:
    """Every metric, of the same draws."""
    draws = np.random.default_rng(seed).integers(
        0, len(answered), (_NUM_DRAWS, len(answered)), dtype=np.int32
    )
    return {name: _score(*_PARTS[name](answered), draws) for name in metrics}


def _score(parts: Array, combine: Callable[[Array], float], draws: npt.NDArray[np.int32]) -> Score:
    """`parts`: [examples, numbers]; `combine` makes a score of their sums."""
    drawn = sorted(combine(parts[draw].sum(axis=0)) for draw in draws)
    low, high = (drawn[int(q * (len(drawn) - 1))] for q in (0.025, 0.975))
    return Score(combine(parts.sum(axis=0)), low, high)


def _mean(of: Callable[[Answered], float]) -> Callable[[Sequence[Answered]], _Parts]:
    def parts(answered: Sequence[Answered]) -> _Parts:
        return np.array([[of(one), 1.0] for one in answered]), lambda s: 100 * float(s[0] / s[1])

    return parts


_Parts = tuple[Array, Callable[[Array], float]]


def _exact(one: Answered) -> float:
    """As it is, but for white space around it."""
    return float(any(one.answer.strip() == right.strip() for right in one.references))


def _accurate(one: Answered) -> float:
    """A label, whatever its case; of an answer only the first line."""
    first = one.answer.strip().partition("\n")[0].strip().lower()
    return float(any(first == right.strip().lower() for right in one.references))


def _f1(one: Answered) -> float:
    """Words that both have, as SQuAD counts them; of the best reference."""
    return max(_overlap(_words(one.answer), _words(right)) for right in one.references)


def _overlap(answer: list[str], right: list[str]) -> float:
    common = sum((Counter(answer) & Counter(right)).values())
    return 2 * common / (len(answer) + len(right)) if common else float(answer == right)


def _words(text: str) -> list[str]:
    plain = "".join(c for c in text.lower() if c not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def _bleu(answered: Sequence[Answered]) -> _Parts:
    """Counts of n-grams as sacrebleu makes them, and sacrebleu's score of their sums."""
    from sacrebleu.metrics.bleu import BLEU  # a second that `--help` need not wait

    most = max(len(one.references) for one in answered)
    bleu = BLEU()
    hypotheses = [one.answer.strip() for one in answered]
    references: list[list[Any]] = [  # sacrebleu takes none for a reference that is not there
        [one.references[i] if i < len(one.references) else None for one in answered]
        for i in range(most)
    ]
    rows = bleu._extract_corpus_statistics(hypotheses, references)

    def combine(sums: Array) -> float:
        return float(bleu._compute_score_from_stats([int(n) for n in sums]).score)

    return np.array(rows, dtype=np.float64), combine


def _rouge(answered: Sequence[Answered]) -> _Parts:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk

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
