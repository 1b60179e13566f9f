"""Scores are those of the libraries, and intervals cover what they should."""

from __future__ import annotations

import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from foreword_tuner import scores
from foreword_tuner.scores import Answered

TEXTS = [
    Answered(
        "There is a pub in the city centre.", ("A pub is in the city centre.", "There is one.")
    ),
    Answered("Aromi is a cheap French pub.", ("Aromi is a French pub, and cheap.",)),
    Answered("", ("Cocum is near the river.", "Near the river is Cocum.", "Cocum.")),
]


def value(name: str, *answered: Answered) -> float:
    return scores.score(answered, [name])[name].value


def test_bleu_is_sacrebleus_of_the_corpus() -> None:
    references = [
        [one.references[i] if i < len(one.references) else None for one in TEXTS] for i in range(3)
    ]

    expected = sacrebleu.corpus_bleu([one.answer for one in TEXTS], references).score

    assert value("bleu", *TEXTS) == pytest.approx(expected, abs=1e-9)
    assert 10 < expected < 90


def test_short_answers_that_are_all_right_have_full_bleu() -> None:
    labels = [Answered("card arrival", ("card arrival",)), Answered("refund", ("no", "refund"))]

    score = scores.score(labels, ["bleu"])["bleu"]

    assert (score.value, score.low, score.high) == pytest.approx((100, 100, 100))


def test_bleu_of_short_answers_is_sacrebleus_with_its_effective_order() -> None:
    labels = [Answered("card arrival", ("card payment",)), Answered("refund", ("refund",))]

    expected = sacrebleu.BLEU(effective_order=True).corpus_score(
        [one.answer for one in labels], [[one.references[0] for one in labels]]
    )

    assert value("bleu", *labels) == pytest.approx(expected.score)
    assert 0 < expected.score < 100


def test_rouge_is_the_mean_of_the_best_references() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [
        max(scorer.score(right, one.answer)["rougeL"].fmeasure for right in one.references)
        for one in TEXTS
    ]

    assert value("rougeL", *TEXTS) == pytest.approx(100 * sum(best) / 3)


@pytest.mark.parametrize(
    ("answer", "exact", "accuracy", "f1"),
    [
        ("card_arrival", 100, 100, 100),
        (" card_arrival\n", 100, 100, 100),
        ("Card_Arrival", 0, 100, 100),
        ("card_arrival\nmore", 0, 100, 200 * 1 / 3),
        ("card", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_a_label(answer: str, exact: float, accuracy: float, f1: float) -> None:
    one = Answered(answer, ("card_arrival", "other"))

    assert value("exact_match", one) == exact
    assert value("accuracy", one) == accuracy
    assert value("f1", one) == pytest.approx(f1)


def test_an_interval_is_the_binomials() -> None:
    order = random.Random(0)
    answered = [Answered("a", ("a",) if order.random() < 0.8 else ("b",)) for _ in range(400)]

    score = scores.score(answered, ["accuracy"])["accuracy"]

    half = 196 * (score.value / 100 * (1 - score.value / 100) / 400) ** 0.5
    assert score.high - score.value == pytest.approx(half, abs=1)
    assert score.value - score.low == pytest.approx(half, abs=1)


def test_all_right_leaves_no_doubt() -> None:
    score = scores.score([Answered("a", ("a",))] * 10, ["exact_match", "bleu"])

    assert (score["exact_match"].low, score["exact_match"].high) == (100, 100)
