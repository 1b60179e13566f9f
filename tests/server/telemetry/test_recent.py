"""Counts and quantiles of the last quarter of an hour."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import Any

import pytest

from server.generation.completion import Target
from server.telemetry import recent
from server.telemetry.recent import WINDOW_S, RecentRequests


@dataclass
class Ended:
    target: Target
    total_s: float
    time_to_first_token_s: float | None = None
    error: Exception | None = None


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def target(task: str | None = "x", version: int | None = 1) -> Target:
    return Target(task, version, None, 0)


def add(requests: RecentRequests, total_s: float = 0.1, **fields: Any) -> None:
    where = fields.pop("target", target())
    requests.completed(Ended(where, total_s, **fields))  # type: ignore[arg-type]


def test_requests_errors_and_refusals_are_counted_by_version() -> None:
    requests = RecentRequests(clock=Clock())
    for error in (None, ValueError(), None):
        add(requests, error=error)
    requests.refused(target())
    add(requests, target=target(version=2))
    add(requests, target=target(None, None))

    found = requests.stats("x", 1)
    assert (found.num_requests, found.num_errors, found.num_refused) == (3, 1, 1)
    assert found.error_rate == pytest.approx(1 / 3)
    assert requests.stats("x", 2).num_requests == 1
    assert requests.stats("x", 3).error_rate is None
    assert requests.stats("x", 3).total_s is None
    assert found.first_token_s is None


def test_quantiles_are_right_to_a_few_percent() -> None:
    requests = RecentRequests(clock=Clock())
    rng = random.Random(1)
    totals = [rng.lognormvariate(-1, 1) for _ in range(5000)]
    for total_s in totals:
        add(requests, total_s, time_to_first_token_s=total_s / 10)

    found = requests.stats("x", 1)
    cuts = statistics.quantiles(totals, n=20)
    assert found.total_s == pytest.approx((cuts[9], cuts[18]), rel=0.02)
    assert found.first_token_s == pytest.approx((cuts[9] / 10, cuts[18] / 10), rel=0.02)


def test_the_slowest_request_is_the_p95_of_a_few() -> None:
    requests = RecentRequests(clock=Clock())
    for total_s in (0.1, 0.1, 0.1, 30.0):
        add(requests, total_s)

    assert requests.stats("x", 1).total_s == pytest.approx((0.1, 30.0), rel=0.02)


def test_old_requests_are_forgotten() -> None:
    clock = Clock()
    requests = RecentRequests(clock=clock)
    add(requests)
    clock.now_s += WINDOW_S / 2
    add(requests)
    assert requests.stats("x", 1).num_requests == 2

    clock.now_s += WINDOW_S / 2
    assert requests.stats("x", 1).num_requests == 1
    clock.now_s += WINDOW_S
    assert requests.stats("x", 1).num_requests == 0


def test_requests_before_a_moment_can_be_left_out() -> None:
    clock = Clock()
    requests = RecentRequests(clock=clock)
    add(requests, error=ValueError())
    clock.now_s += 60
    since_s = clock.now_s
    clock.now_s += 60
    add(requests)

    assert requests.stats("x", 1, since_s).num_errors == 0
    assert requests.stats("x", 1, since_s).num_requests == 1
    assert requests.stats("x", 1, clock.now_s + 60).num_requests == 0


def test_memory_does_not_grow_with_requests_time_or_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recent, "_MAX_VERSIONS", 3)
    clock = Clock()
    requests = RecentRequests(clock=clock)
    for number in range(3000):
        clock.now_s += 10
        add(requests, number / 100)
        add(requests, target=target(version=1 + number))

    assert len(requests._versions) == 3
    slots = requests._versions["x", 1]
    assert len(slots) <= WINDOW_S / 15
    assert requests.stats("x", 2).num_requests == 0
