"""The soak finds faults: other answers, outages that were not announced, late ends, growth."""

from __future__ import annotations

import asyncio

import pytest

from tests.soak.ledger import Answer, Ledger, Target, Violation
from tests.soak.session import run_bounded
from tests.soak.watch import Sample, slope_mib

TARGET = Target("task", 1, "sha256:a")


def test_a_version_that_answers_otherwise_is_a_violation() -> None:
    ledger = Ledger()
    ledger.answered(TARGET, "short", Answer("a", (-1.0,)))
    ledger.answered(TARGET, "short", Answer("a", (-1.001,)))
    ledger.answered(TARGET, "short", Answer("a"))

    for other in (Answer("b", (-1.0,)), Answer("a", (-1.5,)), Answer("a", (-1.0, -1.0))):
        with pytest.raises(Violation):
            ledger.answered(TARGET, "short", other)


def test_a_stream_that_was_left_has_to_be_the_beginning_of_the_answer() -> None:
    whole = Answer('{"token_ids": [4, 5, 6]}')

    assert whole.begins_with([])
    assert whole.begins_with([4, 5])
    assert not whole.begins_with([5])
    assert not whole.begins_with([4, 5, 6, 7])


def test_only_requests_during_an_outage_may_report_it() -> None:
    outages = Ledger().outages
    assert not outages.overlap(0, 1e12)

    outages.begin()
    [begun_s] = outages._begun_s
    assert outages.overlap(begun_s - 1, begun_s + 1)
    assert not outages.overlap(begun_s - 2, begun_s - 1)
    outages.end()
    [ended_s] = outages._ended_s
    assert outages.overlap(ended_s - 0.1, ended_s + 9)
    assert not outages.overlap(ended_s + 0.1, ended_s + 9)


async def test_an_operation_that_does_not_end_or_finds_a_fault_is_counted() -> None:
    async def wrong() -> str:
        raise Violation("wrong")

    async def right() -> str:
        return "200"

    ledger = Ledger()
    await run_bounded(ledger, "hangs", asyncio.sleep(60), max_operation_s=0.01)
    await run_bounded(ledger, "is wrong", wrong(), max_operation_s=60)
    await run_bounded(ledger, "is right", right(), max_operation_s=60)

    assert ledger.num_violations == 2
    assert ledger.outcomes["is right", "200"] == 1
    assert len(ledger.violations) == 2


def test_growth_is_in_mib_per_minute() -> None:
    samples = [Sample(60.0 * i, 1, 100 + 2.0 * i, 1, 1) for i in range(5)]

    assert slope_mib(samples) == pytest.approx(2)
    assert slope_mib(samples[:2]) == 0
